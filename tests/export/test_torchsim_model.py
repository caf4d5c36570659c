"""The TorchSim model, used by TorchSim's batched states, validator, optimizers and autobatchers."""

from __future__ import annotations

import csv
import gzip
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
import torch
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import lower_and_check
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import InvalidStructureError, ModelFileError, UnknownElementError
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import CUTOFF, ELEMENTS, traced_once

ts = pytest.importorskip(
    "torch_sim", "0.6", "needs TorchSim 0.6, and Python 3.12 for it: pip install 'torch-sim-atomistic>=0.6'"
)

from equiscreen.export.torchsim_model import OnnxModel  # noqa: E402 - imports TorchSim
from torch_sim.models.interface import validate_model_outputs  # noqa: E402 - see above

CPU = torch.device("cpu")
# Those of the systems in TorchSim's validator.
VALIDATED = (1, 6, 12, 14, 26)
OPTIMIZERS = (ts.Optimizer.fire, ts.Optimizer.lbfgs)
WITH_CELL = {"cell_filter": ts.CellFilter.frechet}
FMAX = 0.05  # eV/angstrom


@pytest.fixture(scope="module")
def potential(exported: Callable[[str], Path]) -> OnnxPotential:
    return OnnxPotential.load(exported("float64"), threads=1)


@pytest.fixture(scope="module")
def model(potential: OnnxPotential) -> OnnxModel:
    return OnnxModel(potential)


def state_of(structures: list[Structure], dtype: torch.dtype = torch.float64) -> Any:
    """The structures as one state, made by TorchSim itself."""
    return ts.io.atoms_to_state([structure.to_ase() for structure in structures], CPU, dtype)


def with_heads(*, energy: bool) -> OnnxPotential:
    """An untrained network with a head per structure and a head per atom."""
    torch.manual_seed(1)
    config = NetworkConfig.model_validate(
        {
            "cutoff": CUTOFF,
            "hidden_irreps": "4x0e + 2x1o",
            "correlation": 1,
            "n_radial": 2,
            "radial_hidden": 4,
            "n_interactions": 1,
            "energy": energy,
            "heads": {"gap": {"channels": 4}, "charge": {"channels": 4, "per": "atom"}},
        }
    )
    count = len(VALIDATED)
    references, scales = ((-1.0,) * count, (0.7,) * count) if energy else ((0.0,) * count, (1.0,) * count)
    network = EquivariantNetwork(config, VALIDATED, DataStatistics(references, scales, 20.0)).eval()
    with traced_once():
        return OnnxPotential(lower_and_check([network], ModelCard(training_data="none"))[0].SerializeToString())


def rattled() -> list[ase.Atoms]:
    images = [ase.build.bulk("Al", cubic=True), ase.build.bulk("Cu"), ase.build.bulk("Au", cubic=True)]
    images[1] *= (2, 1, 1)
    for seed, atoms in enumerate(images):
        atoms.rattle(0.08, seed=seed)
        atoms.set_cell(atoms.cell @ [[1.02, 0.01, 0.0], [0.0, 0.99, 0.02], [0.0, 0.0, 1.01]], scale_atoms=True)
    return images


def small_crystals(data: Path, count: int) -> list[ase.Atoms]:
    """The first crystals of the Materials Project with at most six atoms, with displaced atoms."""
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt", newline="") as file:
        structures = (structure_from_cif(row["cif"])[0] for row in csv.DictReader(file))
        small = (structure.to_ase() for structure in structures if 2 <= len(structure) <= 6)
        images = list(itertools.islice(small, count))
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
    return images


def relaxed(state: Any, model: OnnxModel, optimizer: Any, steps: int = 5) -> Any:
    """The state after some steps on positions and cell."""
    init, step = ts.OPTIM_REGISTRY[optimizer]
    state = init(state, model, **WITH_CELL)
    for _ in range(steps):
        state = step(state, model)
    return state


def in_batches(images: list[ase.Atoms], model: OnnxModel, optimizer: Any, atoms: int, max_steps: int) -> Any:
    """The images, relaxed in batches of some atoms; a system that has converged makes room for the next."""
    return ts.optimize(
        images,
        model,
        optimizer=optimizer,
        convergence_fn=ts.generate_force_convergence_fn(FMAX, include_cell_forces=True),
        autobatcher=ts.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=atoms),
        max_steps=max_steps,
        steps_between_swaps=1,
        init_kwargs=WITH_CELL,
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_a_state_has_what_the_potential_finds(
    potential: OnnxPotential, model: OnnxModel, seed: int, count: int
) -> None:
    """In sheared cells, where exchanged rows and columns would show."""
    structures = probe_structures(ELEMENTS, count, seed)
    expected = potential.evaluate_structures(structures)
    found = model(state_of(structures))
    # The conversion to Cartesian coordinates and back costs some last digits.
    assert np.allclose(found["energy"].numpy(), expected.energy, rtol=1e-11)
    assert np.allclose(found["forces"].numpy(), expected.forces, atol=1e-9)
    assert np.allclose(found["stress"].numpy(), expected.stress, atol=1e-9)


def test_torchsims_validator_is_content_and_heads_come_along() -> None:
    potential = with_heads(energy=True)
    for dtype in (torch.float32, torch.float64):
        validate_model_outputs(OnnxModel(potential, dtype=dtype), CPU, dtype)
    structures = probe_structures((14, 26), 3, seed=2)
    expected, found = potential.evaluate_structures(structures), OnnxModel(potential)(state_of(structures))
    assert set(found) == {"energy", "forces", "stress", "gap", "charge"}
    for name in ("gap", "charge"):
        assert found[name].shape == expected.properties[name].shape
        assert np.allclose(found[name].numpy(), expected.properties[name], atol=1e-9)


def test_the_stress_is_the_slope_of_the_energy(model: OnnxModel) -> None:
    """Signs, units and the order of components, from strained copies in one state."""
    step = 1e-5
    plain = ts.io.atoms_to_state([rattled()[0]], CPU, torch.float64)
    cell, positions = plain.row_vector_cell[0], plain.positions
    strains = [sign * step * torch.eye(9).reshape(9, 3, 3)[i].double() for i in range(9) for sign in (1, -1)]
    strained = [torch.eye(3).double() + (strain + strain.T) / 2 for strain in strains]
    copies = ts.SimState(
        positions=torch.cat([positions @ strain for strain in strained]),
        masses=plain.masses.repeat(18),
        cell=torch.stack([(cell @ strain).T for strain in strained]),
        pbc=True,
        atomic_numbers=plain.atomic_numbers.repeat(18),
        system_idx=torch.arange(18).repeat_interleave(plain.n_atoms),
    )
    energy = model(copies)["energy"].reshape(9, 2)
    slope = ((energy[:, 0] - energy[:, 1]) / (2 * step)).reshape(3, 3) / torch.det(cell).abs()
    stress = model(plain)["stress"][0]
    assert (stress - slope).abs().max() < 1e-6 * max(1, stress.abs().max())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_relaxation_goes_downhill_as_each_system_does_alone(model: OnnxModel, optimizer: Any) -> None:
    images = rattled()
    state = ts.io.atoms_to_state(images, CPU, torch.float64)
    together = relaxed(state, model, optimizer)
    assert (together.energy < model(state)["energy"]).all()
    for index, atoms in enumerate(images):
        alone = relaxed(ts.io.atoms_to_state([atoms], CPU, torch.float64), model, optimizer)
        # Sums in another order, over several steps.
        assert torch.allclose(together[index].energy, alone.energy, rtol=1e-9)
        assert torch.allclose(together[index].positions, alone.positions, atol=1e-8)
        assert torch.allclose(together[index].cell, alone.cell, atol=1e-8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_torchsims_autobatcher_takes_it(model: OnnxModel, optimizer: Any) -> None:
    """Two of the three systems fit into a batch."""
    images = rattled()
    before = model(ts.io.atoms_to_state(images, CPU, torch.float64))["energy"]
    after = in_batches(images, model, optimizer, atoms=8, max_steps=5)
    assert after.dtype == torch.float64
    assert after.n_atoms_per_system.tolist() == [len(atoms) for atoms in images]
    assert (after.energy < before).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_real_crystals_come_to_rest_with_our_energies(data: Path, sevennet_model: Path, optimizer: Any) -> None:
    images, model = small_crystals(data, 4), OnnxModel(sevennet_model, threads=1)
    state = in_batches(images, model, optimizer, atoms=10, max_steps=200)
    ours = model.potential.evaluate_structures([Structure.from_ase(atoms) for atoms in state.to_atoms()])
    # Wrapping atoms into the cell changes the rounding of a float32 network.
    sizes = [len(atoms) for atoms in images]
    assert np.allclose(state.energy.numpy() / sizes, ours.energy / sizes, rtol=0, atol=1e-5)
    assert np.allclose(state.forces.numpy(), ours.forces, atol=1e-4)
    assert np.allclose(state.stress.numpy(), ours.stress, atol=1e-5)
    assert np.linalg.norm(ours.forces, axis=1).max() < FMAX + 1e-4
    before = model(ts.io.atoms_to_state(images, CPU, torch.float64))["energy"]
    assert (state.energy < before).all()


def test_atoms_and_systems_keep_their_order(model: OnnxModel) -> None:
    """Atoms within a system are permuted, and systems are in a different order from their indices."""
    rng = np.random.default_rng(0)
    several = state_of(probe_structures(ELEMENTS, 3, seed=8))
    within = np.concatenate([rng.permutation(np.flatnonzero(several.system_idx == index)) for index in range(3)])
    # TorchSim's check of the indices allows systems of equal size in any order.
    equal = ts.concatenate_states([several[0], several[0].clone(), several[0].clone()])
    equal.positions += 0.05 * torch.as_tensor(rng.normal(size=equal.positions.shape))
    across = np.arange(equal.n_atoms).reshape(3, -1)[[2, 0, 1]].ravel()
    for state, order in ((several, torch.as_tensor(within)), (equal, torch.as_tensor(across))):
        expected = model(state)
        found = model(
            ts.SimState(
                positions=state.positions[order],
                masses=state.masses[order],
                cell=state.cell,
                pbc=True,
                atomic_numbers=state.atomic_numbers[order],
                system_idx=state.system_idx[order],
            )
        )
        assert torch.allclose(found["energy"], expected["energy"], rtol=1e-11)
        assert torch.allclose(found["forces"], expected["forces"][order], atol=1e-9)
        assert torch.allclose(found["stress"], expected["stress"], atol=1e-9)


@pytest.mark.parametrize("computed", ["float32", "float64"])
@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
def test_results_are_in_the_states_dtype(exported: Callable[[str], Path], computed: str, kept: torch.dtype) -> None:
    structures = probe_structures(ELEMENTS, 3, seed=4)
    expected = OnnxPotential.load(exported("float64"), threads=1).evaluate_structures(structures)
    found = OnnxModel(exported(computed), threads=1)(state_of(structures, kept))
    assert {tensor.dtype for tensor in found.values()} == {kept}
    scale = np.abs(expected.forces).max()
    assert np.abs(found["forces"].numpy() - expected.forces).max() < 1e-3 * scale


def test_a_state_is_left_alone_and_other_models_of_a_sum_may_have_arguments(model: OnnxModel) -> None:
    state = state_of(probe_structures(ELEMENTS, 2, seed=6))
    before = state.clone()
    expected = model(state)
    found = model(state, charge=1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    names = ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
    assert all(torch.equal(getattr(state, name), getattr(before, name)) for name in names)


def test_what_is_not_asked_for_is_not_there(potential: OnnxPotential) -> None:
    state = state_of(probe_structures(ELEMENTS, 2, seed=6))
    assert set(OnnxModel(potential, compute_stress=False)(state)) == {"energy", "forces"}
    assert set(OnnxModel(potential, compute_forces=False)(state)) == {"energy", "stress"}


@settings(max_examples=8, deadline=None)
@given(axes=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(lambda axes: not all(axes)))
def test_molecules_and_slabs_have_forces_but_no_stress(
    potential: OnnxPotential, model: OnnxModel, axes: tuple[bool, ...]
) -> None:
    crystals = probe_structures(ELEMENTS, 2, seed=3)
    expected = potential.evaluate_structures(
        [Structure.from_cartesian(s.atomic_number, s.positions, s.cell, axes) for s in crystals]
    )
    images = [structure.to_ase() for structure in crystals]
    for atoms in images:
        atoms.pbc = axes
    state = ts.io.atoms_to_state(images, CPU, torch.float64)
    found = model(state)
    assert np.allclose(found["energy"].numpy(), expected.energy, rtol=1e-11)
    assert np.allclose(found["forces"].numpy(), expected.forces, atol=1e-9)
    assert found["stress"].isnan().all()
    # TorchSim stops at such a stress, rather than return a cell that is not a number.
    with pytest.raises(ValueError, match="NaN"):
        relaxed(state, model, ts.Optimizer.fire)


def test_a_model_without_an_energy_is_refused() -> None:
    with pytest.raises(ModelFileError, match="the model does not predict energy"):
        OnnxModel(with_heads(energy=False))


def test_what_cannot_be_evaluated_is_told(model: OnnxModel) -> None:
    known = ase.build.bulk("Cu")
    with pytest.raises(UnknownElementError, match=r"\[92\]"):
        model(ts.io.atoms_to_state([known, ase.build.bulk("U", "fcc", a=4.5)], CPU, torch.float64))
    twice = known.copy() + known.copy()
    with pytest.raises(InvalidStructureError, match="system 1 of the state"):
        model(ts.io.atoms_to_state([known, twice], CPU, torch.float64))
    flat = known.copy()
    flat.cell[2] = flat.cell[1]
    with pytest.raises(InvalidStructureError, match="system 0 of the state: cell of zero volume"):
        model(ts.io.atoms_to_state([flat, known], CPU, torch.float64))


def test_the_package_does_not_load_it_unasked() -> None:
    script = "import sys, equiscreen.export; print({'torch', 'torch_sim'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
