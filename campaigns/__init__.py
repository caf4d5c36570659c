"""Whole campaigns: what needs both a network and a screen, such as ranking a folder of crystals with one call."""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .rank import rank
    from .settings import RankSettings

__all__ = ["RankSettings", "rank"]

if not TYPE_CHECKING:  # or a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {"RankSettings": ".settings", "rank": ".rank"},
    )
