"""The two definitions of a duplicate, in a module of their own because the command line imports them at start."""

from __future__ import annotations

from enum import StrEnum


class Dedup(StrEnum):
    """Which structures count as duplicates."""

    EXACT = "exact"  # equal cell, periodicity, elements and coordinates, in the same site order
    CRYSTAL = "crystal"  # the same crystal, in any cell, origin, site order and orientation
