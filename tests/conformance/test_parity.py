"""Quantities that change sign under a mirror, tested on non-zero values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from equiscreen.conformance.laws import evaluate
from equiscreen.model.data.batches import table_tensors
from equiscreen.model.layers.heads import Head
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock, Structure
from scipy.spatial.transform import Rotation

from ..conftest import CUTOFF
from .networks import head, network_of
from .prototypes import ACHIRAL, CHIRAL, PROTOTYPE_ELEMENTS, mirrored, prototype
from .tensors import Array, turned

ODD_HEADS = {f"of_{irrep}": head(irreps=irrep, per="atom") for irrep in ("0o", "1e", "2o", "3e", "3o")}


def test_each_irrep_is_there_and_turns_and_mirrors_as_it_should() -> None:
    settings = {"symmetry": "o3", "hidden_irreps": "3x0e + 2x1o + 2x1e + 2x2e + 2x2o", "l_max": 3, "correlation": 2}
    network = network_of({**settings, "energy": False, "heads": ODD_HEADS}, elements=PROTOTYPE_ELEMENTS)
    potential, crystal = TorchPotential(network), prototype("quartz")
    before = evaluate(potential, [crystal]).properties
    for sign in (1, -1):
        turn = sign * Rotation.random(rng=np.random.default_rng(8)).as_matrix()
        image = Structure.from_fractional(crystal.atomic_number, crystal.cell @ turn.T, crystal.frac_coord)
        after = evaluate(potential, [image]).properties
        for name, kind in ODD_HEADS.items():
            largest = np.abs(before[name]).max()
            assert largest > 1e-6, name
            # Ten of float64's sixteen digits, for values up to a thousand times smaller than the terms they sum.
            assert np.abs(turned(before[name], kind, turn) - after[name]).max() <= 1e-10 * largest, name


# --- a learned pseudoscalar -------------------------------------------------------------------------------------------


def handedness(structures: Sequence[Structure]) -> Array:
    """Pseudoscalar of each atom: v_i . sum over neighbours j of w(r_ij) r_ij x v_j.

    v is the sum of an atom's unit vectors to its neighbours, weighted by distance and element. Two shells are needed:
    in P2_13 every atom lies on a threefold axis, and all its own vectors point along that axis.

    Returns:
        float64[n_atoms].
    """
    block = GraphBlock.from_structures(structures, CUTOFF)
    vectors = block.displacements()
    distance = np.linalg.norm(vectors, axis=1)
    weight = np.exp(-(distance**2) / 4) * (1 - distance / CUTOFF) ** 2
    charge = np.sqrt(block.atomic_number.astype(float))[block.sender]
    n = len(block.atomic_number)
    sums, crosses = np.zeros((n, 3)), np.zeros((n, 3))
    np.add.at(sums, block.receiver, vectors * (weight * charge / distance)[:, None])
    np.add.at(crosses, block.receiver, np.cross(vectors * weight[:, None], sums[block.sender]))
    out: Array = (sums * crosses).sum(axis=1)
    return out


def rattled(structure: Structure, seed: int) -> Structure:
    noise = np.random.default_rng(seed).normal(0, 0.12, (len(structure), 3))
    return Structure.from_cartesian(structure.atomic_number, structure.positions + noise, structure.cell, pbc=True)


@pytest.fixture(scope="module")
def trained() -> TorchPotential:
    """A float32 network trained on rattled crystals, which have no symmetry, without showing it mirror images."""
    made = [rattled(prototype(name), seed) for seed in range(6) for name in CHIRAL]
    settings = {
        "symmetry": "o3",
        "hidden_irreps": "8x0e + 8x1o + 8x1e",
        "l_max": 1,
        "n_radial": 8,
        "correlation": 2,
        "energy": False,
        "heads": {"handedness": head(tensor="pseudoscalar", per="atom", channels=8)},
    }
    network = network_of(settings, seed=1, dtype=torch.float32, elements=PROTOTYPE_ELEMENTS)
    fit(network, made)
    return TorchPotential(network.eval())


def fit(network: EquivariantNetwork, made: Sequence[Structure]) -> None:
    """Train with a few dozen steps of Adam on all structures at once, with equal weight for each compound."""
    labels = torch.from_numpy(handedness(made))
    kinds = np.concatenate([np.full(len(s), place % len(CHIRAL)) for place, s in enumerate(made)])
    squares = np.array([(labels[kinds == kind] ** 2).mean() for kind in range(len(CHIRAL))])
    weights = torch.from_numpy(1 / squares[kinds])
    inner = network.heads["handedness"]
    assert isinstance(inner, Head)
    # An untrained pseudoscalar is a product of small numbers; a scale of this size saves the steps that would raise it.
    inner.component_scales.fill_(20 * float(labels.std()))
    inputs = table_tensors(GraphBlock.from_structures(made, CUTOFF), CUTOFF, torch.float32)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=0.03)
    for _ in range(90):
        optimizer.zero_grad()
        error = network.predict(*inputs).heads["handedness"][:, 0] - labels
        (weights * error**2).mean().backward()
        optimizer.step()


def noise(potential: TorchPotential, structure: Structure) -> float:
    """Return the largest standard deviation of an atom's value over random rotations of its crystal."""
    rng = np.random.default_rng(2)
    images = [
        Structure.from_fractional(structure.atomic_number, structure.cell @ turn.T, structure.frac_coord)
        for turn in Rotation.random(20, rng=rng).as_matrix()
    ]
    values = evaluate(potential, images).properties["handedness"].reshape(len(images), -1)
    return float(values.std(axis=0).max())


@pytest.mark.parametrize("name", CHIRAL)
def test_a_learned_pseudoscalar_tells_enantiomers_apart(trained: TorchPotential, name: str) -> None:
    crystal = prototype(name)
    assert np.abs(handedness([crystal])).max() > 1e-3, "the quantity vanishes in this crystal"
    assert np.allclose(handedness([mirrored(crystal)]), -handedness([crystal]), atol=1e-12)
    values, opposite = (evaluate(trained, [s]).properties["handedness"] for s in (crystal, mirrored(crystal)))
    place = int(np.abs(values).argmax())
    assert abs(values[place]) > 100 * noise(trained, crystal)
    # Only float32 rounding may differ: the noise measures it, and 10 is the number of standard deviations.
    assert np.abs(values + opposite).max() <= 10 * noise(trained, crystal)
    assert values[place] * opposite[place] < 0
    # The network has also learned: the sign is correct for every atom at which the quantity is large.
    truth = handedness([crystal])
    much = np.abs(truth) > 0.5 * np.abs(truth).max()
    assert (np.sign(values.ravel()[much]) == np.sign(truth[much])).all()


@pytest.mark.parametrize("name", ACHIRAL)
def test_a_learned_pseudoscalar_is_zero_in_achiral_crystals(trained: TorchPotential, name: str) -> None:
    crystal, chiral = prototype(name), prototype("ullmannite")
    values = evaluate(trained, [crystal]).properties["handedness"]
    reference = np.abs(evaluate(trained, [chiral]).properties["handedness"]).max()
    # An atom of an achiral crystal may be chiral if its image is another atom; their mean is not.
    assert abs(values.mean()) <= 1e-5 * reference  # rounding of sums in float32
