"""The laws of physics, asked of an exported file itself: turned, moved and renumbered structures."""

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
from ..pipeline.structures.random_crystals import probe_structures
from ..pipeline.structures.structure import Structure
from .runtime.onnx_potential import OnnxPotential

_PROBES = (6, 31, 10)  # structures, seed, largest number of atoms
# What rounding of another orientation may do, of float32 and float64: in eV/atom, eV/angstrom and eV/angstrom^3 for
# structures whose forces are of the order of 1 eV/angstrom, and more for larger ones; of heads relative to their size.
LIMITS = {"energy": 1e-5, "forces": 2e-4, "stress": 2e-5}
HEAD_LIMIT = 1e-4
FLOAT64 = 1e-6


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to structures: a turn, and another order of each structure's atoms."""

    name: str
    structures: list[Structure]
    turn: NDArray[np.float64]
    order: NDArray[np.int64]


def check_laws(potential: OnnxPotential, heads: Mapping[str, HeadConfig]) -> dict[str, float]:
    """Compare structures with themselves, turned, mirrored (if the model knows parity), moved and renumbered.

    Args:
        potential: The exported file.
        heads: What its heads are, by name.

    Returns:
        Largest violations, by ``output/change``.

    Raises:
        ExportError: A violation beyond rounding.
    """
    structures = [*probe_structures(potential.elements, *_PROBES, cutoff=potential.cutoff)]
    structures.append(Structure.from_cartesian(structures[0].atomic_number, structures[0].positions))
    block = GraphBlock.from_structures(structures, potential.cutoff)
    before = potential.evaluate(block).arrays()
    # A model without forces has energies to tell how steep these structures are.
    has_forces = "forces" in {spec.name for spec in potential.outputs}
    steepness = before["forces"] if has_forces else before["energy"] / block.n_atoms
    largest = max(1.0, float(np.nanmax(np.abs(steepness), initial=0.0)))
    factor = FLOAT64 if potential.metadata.dtype == "float64" else 1.0
    out: dict[str, float] = {}
    for change in _changes(structures, mirror=potential.metadata.symmetry != "so3"):
        after = potential.evaluate(GraphBlock.from_structures(change.structures, potential.cutoff)).arrays()
        for spec in potential.outputs:
            name = spec.name.removesuffix(SPREAD)
            if (spec.name != name and spec.shape) or np.isnan(before[spec.name]).all():
                continue  # standard deviations of components are no tensor
            expected = _turned(before[spec.name], name, spec.shape, heads, change.turn)
            expected = expected[change.order] if spec.per == "atom" else expected
            expected = np.abs(expected) if spec.name != name else expected
            absent = np.isnan(expected) & np.isnan(after[spec.name])
            found = np.where(absent, 0.0, np.abs(after[spec.name] - expected))
            if name == "energy":
                found = found / block.n_atoms
            scale = largest if name in LIMITS else max(1.0, float(np.nanmax(np.abs(expected))))
            violation, limit = float(found.max()), factor * LIMITS.get(name, HEAD_LIMIT) * scale
            out[f"{spec.name}/{change.name}"] = violation
            if not violation <= limit:
                raise ExportError(
                    f"{spec.name} of {change.name} structures is off by {violation:.1e}, over {limit:.1e}"
                )
    return out


def _turned(
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
    rng = np.random.default_rng(_PROBES[1])
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    same = np.arange(sum(len(s) for s in structures))
    yield _Change("turned", [_with(s, turn=turn) for s in structures], turn, same)
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
    """A structure turned, moved and with its atoms in another order."""
    order = np.arange(len(s)) if order is None else order
    turn = np.eye(3) if turn is None else turn
    positions = s.positions @ turn.T
    positions = positions if move is None else positions + move
    if s.pbc.any():
        return Structure.from_cartesian(s.atomic_number[order], positions[order], s.cell @ turn.T, s.pbc)
    return Structure.from_cartesian(s.atomic_number[order], positions[order])
