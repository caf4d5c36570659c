"""Sharing of results: as files on a web server or in an object store, or through a server that answers queries."""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .catalogue import open_catalogue
    from .crate_archive import crate
    from .publication import publish
    from .serving.server import serve

__all__ = ["crate", "open_catalogue", "publish", "serve"]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "crate": ".crate_archive",
            "open_catalogue": ".catalogue",
            "publish": ".publication",
            "serve": ".serving.server",
        },
        serve=("fastapi", "uvicorn", "xpublish"),
    )
