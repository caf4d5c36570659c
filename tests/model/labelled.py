"""Structures with synthetic labels that depend on their neighbours, so that a network has something to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np
from ase.calculators.emt import EMT
from ase.io import write
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, Structure, featurize
from numpy.typing import NDArray

CUTOFF = 4.5
INLINE = (
    "strain:3x3=strain[GPa]",
    "hardness=hardness[GPa]",
    "brightness=brightness",
    "charge=charge[e]",
    "field:atomx3=field[V/angstrom]",
)
# Weights and contributions of the elements in the labels below.
STRENGTH = {13: 0.5, 29: 1.0, 47: 1.2, 79: 1.5}
FORMAL_CHARGE = {13: 3.0, 29: 2.0, 47: 1.0, 79: -1.0}


def made_up(structures: Sequence[Structure]) -> list[dict[str, NDArray[np.float64]]]:
    """Compute synthetic labels of each structure; they depend on its neighbours and rotate with it.

    ``strain`` (3x3, symmetric): the mean over atoms of sums over neighbours of w r r^T / r^2; ``hardness``: its trace;
    ``brightness``: the exponential of the hardness; ``charge`` (extensive): the sum of formal charges and a share of
    the hardness; ``field`` (a vector per atom): sums over neighbours of w r / r. The weight w decreases with distance
    and is proportional to the strengths of both elements.
    """
    found = []
    for structure in structures:
        block = GraphBlock.from_structures([structure], CUTOFF)
        strength = np.array([STRENGTH[z] for z in block.atomic_number])
        vectors = block.displacements()
        distance = np.linalg.norm(vectors, axis=1, keepdims=True)
        weight = strength[block.receiver, None] * strength[block.sender, None] * (1 - (distance / CUTOFF) ** 2) ** 2
        unit = vectors / distance
        field = np.zeros((len(structure), 3))
        np.add.at(field, block.receiver, weight * unit)
        strain = np.einsum("ni,nj->ij", weight * unit, unit) / len(structure)
        hardness = np.trace(strain)
        charge = sum(FORMAL_CHARGE[z] for z in block.atomic_number) + 0.2 * hardness * len(structure)
        labels = {
            "strain": strain,
            "hardness": hardness,
            "brightness": np.exp(hardness),
            "charge": charge,
            "field": field,
        }
        found.append({name: np.asarray(value, dtype=np.float64) for name, value in labels.items()})
    return found


def images(structures: Sequence[Structure], labels: Sequence[str] = (), *, emt: bool = False) -> list[ase.Atoms]:
    """Convert structures to ASE images with some labels of `made_up` and, with `emt`, energies, forces and stresses."""
    out = []
    for structure, values in zip(structures, made_up(structures) if labels else [{}] * len(structures), strict=True):
        atoms = structure.to_ase()
        if emt:
            atoms.calc = EMT()
            atoms.get_forces()
            if atoms.pbc.all():
                atoms.get_stress()
        for name in labels:
            if name == "field":
                atoms.arrays[name] = values[name]
            else:
                atoms.info[name] = values[name] if values[name].shape else float(values[name])
        out.append(atoms)
    return out


def stored(
    path: Path,
    atoms: Sequence[ase.Atoms],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    cutoff: float = CUTOFF,
) -> Path:
    """Featurize images to a graph store, mapping the named labels in addition to ASE's own."""
    write(path.with_suffix(".extxyz"), atoms, format="extxyz")
    inline = [text for text in INLINE if text.split("=")[0].split(":")[0] in labels]
    mapping = LabelMapping().with_inline(inline, columns).with_ase_defaults()
    featurize(path.with_suffix(".extxyz"), path, cutoff=cutoff, labels=mapping, scheduler="threads")
    return path


def whole(store: Path) -> GraphBlock:
    """Read all structures of a store as one block."""
    graphs = GraphStore(store)
    return graphs.block(0, len(graphs))
