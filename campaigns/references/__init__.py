"""Reference phases from files, the Materials Project and OPTIMADE servers, in one table for `equiscreen hull`.

To add a server that serves energies, extend `providers`.
"""

from typing import TYPE_CHECKING

from ...pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .account import read_account
    from .fetch import fetch_references
    from .systems import systems_of

__all__ = ["fetch_references", "read_account", "systems_of"]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {"fetch_references": ".fetch", "read_account": ".account", "systems_of": ".systems"},
    )
