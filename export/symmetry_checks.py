"""Checks that an exported model obeys its symmetries: rotations, reflections, translations and permutations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..model.config.head import HeadConfig
from ..model.equivariance.rotation import rotate_property
from ..pipeline.errors import ExportError
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.graphs.potential import SPREAD
from ..pipeline.structures.structure import Structure
from .probes import LIMITS, UNITS, Probes
from .runtime.onnx_potential import OnnxPotential

_SEED = 31
# The limit for heads is relative to their largest value, or to 1 if that is larger. In float64, all limits are
# multiplied by FLOAT64.
HEAD_LIMIT = 1e-4
FLOAT64 = 1e-6


@dataclass(frozen=True, slots=True)
class _Change:
    """Structures after a symmetry operation, such as a rotation or a permutation of the atoms of each structure."""

    name: str
    structures: list[Structure]
    turn: NDArray[np.float64]
    order: NDArray[np.int64]


def check_laws(potential: OnnxPotential, heads: Mapping[str, HeadConfig], probes: Probes) -> dict[str, float]:
    """Compare predictions for structures with predictions for rotated, mirrored, translated and renumbered copies.

    Reflections are skipped for a model without parity.

    Args:
        potential: The exported model.
        heads: Configurations of the model's heads, by name.
        probes: Structures to compare.

    Returns:
        Largest violations, by ``output/change``, in the unit of the output (energies: per atom).

    Raises:
        ExportError: A violation exceeds rounding errors.
    """
    structures = probes.structures
    block = GraphBlock.from_structures(structures, potential.cutoff)
    before = potential.evaluate(block).arrays()
    factor = FLOAT64 if potential.metadata.dtype == "float64" else 1.0
    out: dict[str, float] = {}
    for change in _changes(structures, mirror=potential.metadata.symmetry != "so3"):
        after = potential.evaluate(GraphBlock.from_structures(change.structures, potential.cutoff)).arrays()
        for spec in potential.outputs:
            name = spec.name.removesuffix(SPREAD)
            if (spec.name != name and spec.shape) or np.isnan(before[spec.name]).all():
                continue  # standard deviations of components do not form a tensor
            expected = _rotated(before[spec.name], name, spec.shape, heads, change.turn)
            expected = expected[change.order] if spec.per == "atom" else expected
            expected = np.abs(expected) if spec.name != name else expected
            absent = np.isnan(expected) & np.isnan(after[spec.name])
            found = np.where(absent, 0.0, np.abs(after[spec.name] - expected))
            if name == "energy":
                found = found / block.n_atoms
            scale = probes.scale if name in LIMITS else max(1.0, float(np.nanmax(np.abs(expected))))
            violation, limit = float(found.max()), factor * LIMITS.get(name, HEAD_LIMIT) * scale
            out[f"{spec.name}/{change.name}"] = violation
            if not violation <= limit:
                unit = UNITS.get(name, spec.unit)
                raise ExportError(
                    f"{spec.name}: predictions for {change.name} structures are off by {violation:.1e} {unit}".rstrip()
                    + f", above the limit {limit:.1e} {unit}".rstrip()
                    + "; try --float64, or another version of ONNX Runtime"
                )
    return out


def _rotated(
    values: NDArray[np.float64],
    name: str,
    shape: tuple[int, ...],
    heads: Mapping[str, HeadConfig],
    turn: NDArray[np.float64],
) -> NDArray[np.float64]:
    if name in heads:
        return rotate_property(values, heads[name], shape, turn)
    if name == "forces":
        return values @ turn.T
    rotated: NDArray[np.float64] = turn @ values @ turn.T if name == "stress" else values
    return rotated


def _changes(structures: list[Structure], *, mirror: bool) -> Iterator[_Change]:
    rng = np.random.default_rng(_SEED)
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    same = np.arange(sum(len(s) for s in structures))
    yield _Change("rotated", [_with(s, turn=turn) for s in structures], turn, same)
    if mirror:
        turn = -Rotation.from_quat(rng.normal(size=4)).as_matrix()
        yield _Change("mirrored", [_with(s, turn=turn) for s in structures], turn, same)
    moved, orders, begin = [], [], 0
    for s in structures:
        order = rng.permutation(len(s))
        moved.append(_with(s, move=rng.normal(size=3), order=order))
        orders.append(order + begin)
        begin += len(s)
    yield _Change("moved and renumbered", moved, np.eye(3), np.concatenate(orders))


def _with(
    s: Structure,
    *,
    turn: NDArray[np.float64] | None = None,
    move: NDArray[np.float64] | None = None,
    order: NDArray[np.int64] | None = None,
) -> Structure:
    """Return a copy of a structure, rotated, translated and with its atoms in a different order."""
    order = np.arange(len(s)) if order is None else order
    turn = np.eye(3) if turn is None else turn
    positions = s.positions @ turn.T
    positions = positions if move is None else positions + move
    if s.pbc.any():
        return Structure.from_cartesian(s.atomic_number[order], positions[order], s.cell @ turn.T, s.pbc)
    return Structure.from_cartesian(s.atomic_number[order], positions[order])
