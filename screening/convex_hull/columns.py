"""Columns of a hull: the arrays that a hull adds to the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
_STD = "energy_above_hull_std"
_PROBABILITIES = ("probability_below_hull", "probability_near_hull")
_MODEL_COLUMNS = {
    "energy_above_model_hull": "corrected energy above the hull of reference structures relaxed with the same model, "
    "in the model's own energies; negative below it",
}
_FREE_COLUMNS = {
    "free_energy_per_atom": "corrected energy plus the free energy of the vibrations",
    "formation_free_energy_per_atom": "free energy relative to the elements, in the model's own energies",
    "free_energy_above_hull": "free energy above the hull of reference structures computed with the same model; "
    "negative below it",
}
_DECOMPOSITION = "competing phases: fraction of the structure's atoms in each, formula, id"
_EXCLUDED = "; each structure's own phase, recognised by structure, is left out of its hull"
_OTHER_COLUMNS = (
    "correction_per_atom",
    "decomposition",
    "model_decomposition",
    "free_energy_decomposition",
    "hull_status",
)


def suffix(*, relaxed: bool) -> str:
    """Return the suffix of the names of energy columns, which shows whether the structures were relaxed."""
    return "" if relaxed else UNRELAXED


@dataclass(frozen=True, slots=True, kw_only=True)
class HullOptions:
    """How a hull is built, and which columns it adds to the scores.

    Attributes:
        lower_bound: Whether there are no references, so that energies above hull are lower bounds.
        exclude_self: Whether each structure's own phase is left out of its hull.
        model_hull: Whether there is also a hull with all energies computed by the model.
        within: Structures at most this far above the hull (eV/atom) count as near the hull.
        error: Standard deviation of the model's errors in energies above hull, eV/atom; None if it is unknown. With
            several models, their spread is used instead.
        temperature: Temperature of a hull of free energies, K; None without one.
    """

    lower_bound: bool
    exclude_self: bool
    model_hull: bool
    within: float
    error: float | None
    temperature: float | None = None


def hull_arrays(options: HullOptions, *, relaxed: bool, members: bool) -> tuple[ArraySpec, ...]:
    """Return the arrays that a hull adds to the scores.

    Args:
        options: Options of the hull.
        relaxed: Whether the structures were relaxed.
        members: Whether the scores have the energies of the members of an ensemble.
    """
    end = suffix(relaxed=relaxed)
    notes = {
        "energy_above_hull": (_EXCLUDED if options.exclude_self else "")
        + (_LOWER_BOUND if options.lower_bound else ""),
        "energy_above_joint_hull": _LOWER_BOUND if options.lower_bound else "",
    }
    specs = [
        structure_array(f"{name}{end}", "float64", text + notes.get(name, ""), units="eV/atom")
        for name, text in _ENERGY_COLUMNS.items()
    ]
    if members:
        text = "standard deviation of energy_above_hull over the members of the ensemble"
        specs.append(structure_array(f"{_STD}{end}", "float64", text, units="eV/atom"))
    if members or options.error is not None:
        spread = f"{_STD}{end}" if members else f"an error of {options.error} eV/atom"
        texts = ("a negative energy_above_hull", f"an energy_above_hull of at most {options.within} eV/atom")
        specs += [
            structure_array(
                f"{name}{end}",
                "float64",
                f"probability of {text}; from {spread}, assuming a normal distribution",
                units="1",
            )
            for name, text in zip(_PROBABILITIES, texts, strict=True)
        ]
    if options.model_hull:
        specs += [
            *(
                structure_array(f"{name}{end}", "float64", text, units="eV/atom")
                for name, text in _MODEL_COLUMNS.items()
            ),
            structure_array("model_decomposition", TEXT, f"{_DECOMPOSITION}, on the hull in the model's own energies"),
        ]
    if options.temperature is not None:
        at = f", at {options.temperature:g} K"
        specs += [
            *(
                structure_array(
                    f"{name}{end}", "float64", f"{text}{at}", units="eV/atom", temperature=options.temperature
                )
                for name, text in _FREE_COLUMNS.items()
            ),
            structure_array("free_energy_decomposition", TEXT, f"{_DECOMPOSITION}, on the hull of free energies{at}"),
        ]
    return (
        *specs,
        structure_array(
            "correction_per_atom", "float64", "correction included in the corrected energy", units="eV/atom"
        ),
        structure_array("decomposition", TEXT, _DECOMPOSITION),
        structure_array("hull_status", "uint8", "outcome of the hull calculation", **flags(HULL_STATUSES)),
    )


def kept_arrays(scores: Mapping[str, ArraySpec]) -> tuple[ArraySpec, ...]:
    """Return the arrays of the scores that the hull keeps: all but the columns of an earlier hull."""
    energies = (*_ENERGY_COLUMNS, _STD, *_PROBABILITIES, *_MODEL_COLUMNS, *_FREE_COLUMNS)
    replaced = {*energies, *(f"{name}{UNRELAXED}" for name in energies), *_OTHER_COLUMNS}
    return tuple(spec for name, spec in scores.items() if name not in replaced)
