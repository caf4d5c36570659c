"""Properties of some materials, in one process: relaxation, then the stages of all properties together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from ...pipeline.graphs.potential import Potential
from ...pipeline.structures.structure import Structure
from ..plausibility import Plausibility
from ..relaxation import batched
from ..relaxation.batched import Relaxed, RelaxSettings, relax_structures
from ..relaxation.symmetry import symmetrized
from .evaluation import run_stages
from .presets import Preset
from .protocol import (
    FAILED,
    NOT_RELAXED,
    OK,
    TOO_LARGE,
    BornCharges,
    Material,
    Outcome,
    OutcomeError,
    Property,
    check_crystal,
    check_installed,
)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Properties to compute for each material, and the relaxation that precedes them.

    Attributes:
        properties: The properties.
        relaxation: Relaxation that precedes them.
        relax: Whether to relax; otherwise structures are taken as they are, and those that do not meet the criteria of
            `relaxation` have the status ``not_relaxed``, although their properties are computed.
        plausibility: Bounds outside of which a result is meaningless.
    """

    properties: tuple[Property, ...]
    relaxation: RelaxSettings
    relax: bool
    plausibility: Plausibility

    @classmethod
    def of(cls, preset: Preset, what: Sequence[str], potential: Potential, *, relax: bool = True) -> Self:
        """Return the protocol of a preset for the named properties.

        Raises:
            ConfigError: A property is unknown or named twice, none is named, or a library that a property needs is not
            installed.
        """
        properties = preset.chosen(what)
        for one in properties:
            check_installed(one.name, one.libraries)
        return cls(properties, preset.relaxation, relax, Plausibility.of(potential))


@dataclass(frozen=True, slots=True)
class Computed:
    """Result for one material.

    Attributes:
        relaxed: Result of the relaxation or, without a relaxation, of the evaluation.
        prepared: Status and note of the relaxation or evaluation.
        outcomes: Outcome of each property, by name.
    """

    relaxed: Relaxed
    prepared: Outcome
    outcomes: Mapping[str, Outcome]

    @classmethod
    def without_properties(cls, relaxed: Relaxed, prepared: Outcome, properties: Sequence[Property]) -> Self:
        """Return the result for a material whose properties are not computed."""
        return cls(relaxed, prepared, dict.fromkeys((one.name for one in properties), prepared))


def compute_materials(
    structures: Sequence[Structure],
    potential: Potential,
    protocol: Protocol,
    born: Sequence[BornCharges | None] | None = None,
) -> list[Computed]:
    """Compute the properties of some structures.

    Results do not depend on the other structures.

    Args:
        structures: The structures.
        potential: Potential with energy, forces and stress.
        protocol: Properties to compute.
        born: Born charges of each structure, if they are known.

    Returns:
        The result for each structure, in order.
    """
    charges = born or [None] * len(structures)
    relaxed = _relaxed(structures, potential, protocol)
    prepared = [_prepared(structure, one, protocol) for structure, one in zip(structures, relaxed, strict=True)]
    started = {
        (place, one.name): one.stages(_material(relaxed[place], protocol, charges[place]))
        for place, outcome in enumerate(prepared)
        if outcome.status == OK or (outcome.status == NOT_RELAXED and not protocol.relax)
        for one in protocol.properties
    }
    found = run_stages(started, potential, protocol.plausibility)
    return [
        Computed(one, outcome, {each.name: found[place, each.name] for each in protocol.properties})
        if (place, protocol.properties[0].name) in found
        else Computed.without_properties(one, outcome, protocol.properties)
        for place, (one, outcome) in enumerate(zip(relaxed, prepared, strict=True))
    ]


def _relaxed(structures: Sequence[Structure], potential: Potential, protocol: Protocol) -> list[Relaxed]:
    """Relax the crystals among some structures, or evaluate them."""
    settings = protocol.relaxation
    if not protocol.relax:
        settings = replace(settings, max_steps=1, fix_symmetry=False)
    crystals = {place: structure for place, structure in enumerate(structures) if structure.pbc.all()}
    if settings.fix_symmetry:
        crystals = {place: symmetrized(structure, settings.symprec) for place, structure in crystals.items()}
    pairs = crystals.items()
    found = dict(relax_structures(pairs, potential, settings, plausibility=protocol.plausibility))
    return [found.get(place) or Relaxed(batched.OK, None, None, 0) for place in range(len(structures))]


def _prepared(structure: Structure, relaxed: Relaxed, protocol: Protocol) -> Outcome:
    """Return the outcome of a structure's relaxation; it is ok if properties can be computed."""
    try:
        check_crystal(structure)
    except OutcomeError as error:
        return Outcome(error.status, note=error.note)
    if relaxed.status == batched.OK:
        return Outcome(OK)
    if relaxed.status == batched.NOT_CONVERGED:
        how = f"not relaxed within {relaxed.n_steps} evaluations" if protocol.relax else "not relaxed"
        return Outcome(NOT_RELAXED, note=f"{how}: forces or stress exceed the criteria of the preset")
    return Outcome(TOO_LARGE if relaxed.status == batched.TOO_LARGE else FAILED, note=relaxed.reason)


def _material(relaxed: Relaxed, protocol: Protocol, born: BornCharges | None) -> Material:
    frame = relaxed.last
    assert frame is not None  # noqa: S101 - a relaxed structure has a last point
    return Material(frame.structure, frame.energy, frame.forces, frame.stress, protocol.relaxation.symprec, born)
