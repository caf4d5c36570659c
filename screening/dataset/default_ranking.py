"""The column that structures are ranked by unless the user names one."""

from __future__ import annotations

from .reader import ScoresReader
from .scores import UNRELAXED

_COMPARABLE = ("energy_above_hull", "energy_above_joint_hull", "formation_energy_per_atom")
# Columns that rank structures of any composition, best first.
RANKINGS = tuple(f"{name}{end}" for name in _COMPARABLE for end in ("", UNRELAXED))
ENERGY_PER_ATOM = "energy_per_atom"
NOT_COMPARABLE = (
    "energies per atom are not comparable between compositions, and there are neither energies above hull nor "
    "formation energies; run `equiscreen hull`, which computes both"
)


def default_ranking(scores: ScoresReader) -> str | None:
    """Return the column to rank by, lowest values first.

    Args:
        scores: The dataset.

    Returns:
        The first of `RANKINGS` that the dataset has; if it has none of them, ``energy_per_atom`` for structures of a
        single composition; otherwise None, since energies per atom of different compositions do not indicate stability.
    """
    numbers = {name for name, spec in scores.specs.items() if spec.dtype.startswith("float") and len(spec.dims) == 1}
    found = next((name for name in RANKINGS if name in numbers), None)
    if found is not None or ENERGY_PER_ATOM not in numbers:
        return found
    formulas: set[str] = set()
    for start, stop in scores.chunks():
        formulas.update(scores.column("formula", start, stop).tolist())
        if len(formulas) > 1:
            return None
    return ENERGY_PER_ATOM
