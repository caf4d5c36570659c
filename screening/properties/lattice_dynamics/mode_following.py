"""Search for a structure of lower energy along an imaginary mode of a crystal."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ....pipeline.store.schema import ArraySpec, flags, structure_array
from ....pipeline.structures.symmetry import find_symmetry
from ...relaxation.batched import RelaxSettings
from ..protocol import PROPERTY_STATUSES, CellResult, Cells, Material, OutcomeError
from .soft_modes import softest_mode

FOLLOWED_STATUSES = (
    "not_followed",
    "lower",
    "not_lower",
    "not_relaxed",
    "no_commensurate_mode",
    "too_large",
    "failed",
)
NOT_FOLLOWED, LOWER, NOT_LOWER, NOT_RELAXED, NO_COMMENSURATE_MODE, TOO_LARGE, FAILED = range(len(FOLLOWED_STATUSES))
# Lengths of the largest displacement, angstrom; the relaxation begins at the one with the lowest energy. Both signs,
# since the energy need not be an even function of the displacement.
AMPLITUDES = (0.1, -0.1, 0.2, -0.2, 0.4, -0.4)
# Energies of displacements that differ by less (eV/atom) count as equal, and a smaller gain is no gain.
_EQUAL = 1e-5
# Tolerance of the search for the space group of the new structure, angstrom.
_SYMPREC = 0.01


@dataclass(frozen=True, slots=True)
class Followed:
    """Result of following an imaginary mode.

    Attributes:
        status: Index into `FOLLOWED_STATUSES`.
        values: Values of `followed_arrays` besides the status.
        result: The new structure, if its energy is lower.
        note: What went wrong; empty if nothing did.
    """

    status: int
    values: Mapping[str, Any] = field(default_factory=dict)
    result: CellResult | None = None
    note: str = ""


def followed_arrays() -> tuple[ArraySpec, ...]:
    """Return the arrays that describe the structures to which imaginary modes lead."""
    return (
        structure_array(
            "followed_status",
            "uint8",
            "whether the softest imaginary mode leads to a structure of lower energy",
            **flags(FOLLOWED_STATUSES),
        ),
        structure_array(
            "followed_energy_gain",
            "float64",
            "energy of the crystal minus the energy of the structure that the mode leads to",
            units="eV/atom",
        ),
        structure_array(
            "followed_wave_vector",
            "float64",
            "wave vector of the mode, in reciprocal lattice vectors of the primitive cell",
            dims=("reciprocal_vector",),
            inner=(3,),
            units="1",
        ),
        structure_array(
            "followed_space_group", "int16", "space group number of the new structure; 0 = none", units="1"
        ),
        structure_array("followed_n_atoms", "int32", "number of atoms of the new structure", units="1"),
    )


def follow(
    phonopy: Any, material: Material, tolerance: float, settings: RelaxSettings
) -> Generator[Cells, list[CellResult], Followed]:
    """Displace a crystal along its softest imaginary mode, and relax it.

    The crystal is repeated to the smallest supercell that holds whole waves of the mode. Several displacements are
    evaluated, and the one with the lowest energy is relaxed, cell and atoms together.

    Args:
        phonopy: The `Phonopy` object with the force constants of the crystal.
        material: The crystal.
        tolerance: Modes count as imaginary if their frequency is below minus this value, THz.
        settings: Settings of the relaxation.
    """
    mode = softest_mode(phonopy, tolerance)
    if mode is None:
        note = "no imaginary mode fits into the supercell, so all of them may be artefacts of interpolation"
        return Followed(NO_COMMENSURATE_MODE, note=note)
    values = {"followed_wave_vector": mode.wave_vector, "followed_n_atoms": len(mode.structure)}
    try:
        displaced = yield Cells([mode.displaced(amplitude) for amplitude in AMPLITUDES])
        best = min(displaced, key=lambda one: round(one.energy / len(one.structure) / _EQUAL))
        (relaxed,) = yield Cells([best.structure], settings)
    except OutcomeError as error:
        status = TOO_LARGE if PROPERTY_STATUSES[error.status] == "too_large" else FAILED
        return Followed(status, values, note=f"the imaginary mode could not be followed: {error}")
    gain = material.energy / len(material.structure) - relaxed.energy / len(relaxed.structure)
    symmetry = find_symmetry(relaxed.structure, _SYMPREC)
    values |= {
        "followed_energy_gain": gain,
        "followed_space_group": 0 if symmetry is None else symmetry.number,
    }
    if not relaxed.converged:
        note = f"the structure along the imaginary mode did not relax within {relaxed.evaluations} evaluations"
        return Followed(NOT_RELAXED, values, relaxed if gain > _EQUAL else None, note)
    return Followed(LOWER, values, relaxed) if gain > _EQUAL else Followed(NOT_LOWER, values)
