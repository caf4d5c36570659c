"""Columns of a hull: the arrays that it adds to the scores."""

from __future__ import annotations

from collections.abc import Mapping

from ...pipeline.store.schema import TEXT, ArraySpec, flags, structure_array
from ..dataset.scores import UNRELAXED

HULL_STATUSES = ("ok", "no_energy", "missing_reference")
OK, NO_ENERGY, MISSING_REFERENCE = range(len(HULL_STATUSES))
_LOWER_BOUND = "; a lower bound, since only candidates and elements compete"
_ENERGY_COLUMNS = {
    "corrected_energy_per_atom": "energy with the corrections of its energy scheme, from which hulls are built",
    "formation_energy_per_atom": "corrected energy relative to the elements",
    "energy_above_hull": "corrected energy above the hull of the references; negative below it",
    "energy_above_joint_hull": "corrected energy above the hull of references and all candidates; negative only where "
    "the model extrapolates, since such energies are not part of a hull",
}
_MEMBER_COLUMNS = {
    "energy_above_hull_std": ("standard deviation of energy_above_hull over the members of the ensemble", "eV/atom"),
    "probability_below_hull": (
        "probability of a negative energy_above_hull, from the mean and standard deviation of the members, assuming a "
        "normal distribution",
        "1",
    ),
}
_EXCLUDED = "; the own phase of the structure, recognised by structure, is left out of the hull"
_OTHER_COLUMNS = ("correction_per_atom", "decomposition", "hull_status")


def suffix(*, relaxed: bool) -> str:
    """Suffix of the names of energy columns, which shows whether the structures were relaxed."""
    return "" if relaxed else UNRELAXED


def hull_arrays(*, relaxed: bool, members: bool, lower_bound: bool, exclude_self: bool) -> tuple[ArraySpec, ...]:
    """Arrays that a hull adds to the scores.

    Args:
        relaxed: Whether the structures were relaxed.
        members: Whether the scores have the energies of the members of an ensemble.
        lower_bound: Whether there are no references, so that energies above hull are lower bounds.
        exclude_self: Whether each structure's own phase is left out of its hull.
    """
    end = suffix(relaxed=relaxed)

    notes = {
        "energy_above_hull": (_EXCLUDED if exclude_self else "") + (_LOWER_BOUND if lower_bound else ""),
        "energy_above_joint_hull": _LOWER_BOUND if lower_bound else "",
    }
    specs = [
        structure_array(f"{name}{end}", "float64", text + notes.get(name, ""), units="eV/atom")
        for name, text in _ENERGY_COLUMNS.items()
    ]
    if members:
        specs += [
            structure_array(f"{name}{end}", "float64", text, units=unit)
            for name, (text, unit) in _MEMBER_COLUMNS.items()
        ]
    return (
        *specs,
        structure_array(
            "correction_per_atom", "float64", "correction included in the corrected energy", units="eV/atom"
        ),
        structure_array(
            "decomposition",
            TEXT,
            "competing phases: fraction of the structure's atoms in each, formula, id",
        ),
        structure_array("hull_status", "uint8", "outcome of the hull", **flags(HULL_STATUSES)),
    )


def kept_arrays(scores: Mapping[str, ArraySpec]) -> tuple[ArraySpec, ...]:
    """Arrays of the scores that the hull keeps; columns of an earlier hull are recomputed."""
    energies = (*_ENERGY_COLUMNS, *_MEMBER_COLUMNS)
    replaced = {*energies, *(f"{name}{UNRELAXED}" for name in energies), *_OTHER_COLUMNS}
    return tuple(spec for name, spec in scores.items() if name not in replaced)
