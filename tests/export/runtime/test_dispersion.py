"""D3: the library's own numbers, exact derivatives, the symmetries of an energy, and the same bits in any company."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
import torch
from dftd3.ase import DFTD3
from dftd3.interface import DispersionModel, RationalDampingParam
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime import dispersion as module
from equiscreen.export.runtime.dispersion import (
    DAMPING,
    Dispersion,
    DispersionCorrected,
    installed_version,
    one_thread,
    with_dispersion,
)
from equiscreen.export.runtime.ensemble import Ensemble
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.errors import ConfigError, UnknownElementError
from equiscreen.pipeline.graphs.potential import Evaluation
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening.dataset.scores import OK, UNKNOWN_ELEMENT
from equiscreen.screening.scoring.score import score_block
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from ...conftest import CUTOFF, ELEMENTS
from ...emt_potential import EmtPotential
from .altered_models import altered

Model = Callable[..., Path]


def d3(name: str = "d3", functional: str = "pbe") -> Dispersion:
    s8, a1, a2 = DAMPING[functional]
    return Dispersion(name, functional, installed_version(), s8, a1, a2, s9=float(name == "d3-atm"))


def distorted(atoms: ase.Atoms, seed: int = 1) -> ase.Atoms:
    """The same atoms, displaced and strained, so that no symmetry is left."""
    strain = np.random.default_rng(seed).normal(0.0, 0.02, (3, 3))
    strain[:, ~atoms.pbc] = strain[~atoms.pbc] = 0.0
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    return atoms


def slab() -> ase.Atoms:
    """Two layers of graphene, in a cell with a tilted third vector and with atoms outside of it."""
    atoms = ase.build.graphene(vacuum=3.0)
    atoms += ase.Atoms("C2", atoms.positions + np.array([0.3, 0.2, 3.4]))
    atoms.cell[2] = [9.0, 4.0, 12.0]
    return distorted(atoms)


def chain() -> ase.Atoms:
    return distorted(ase.Atoms("NaCl", [[0, 0, 0], [2.6, 0.5, 0]], cell=[5.2, 0, 0], pbc=[True, False, False]))


CASES = {
    "silicon": lambda: distorted(ase.build.bulk("Si")),
    "salt": lambda: distorted(ase.build.bulk("NaCl", "rocksalt", 5.6, cubic=True)),
    "slab": slab,
    "chain": chain,
    "molecule": lambda: distorted(ase.build.molecule("C6H6")),
}


def block_of(images: Sequence[ase.Atoms], cutoff: float = 3.0) -> GraphBlock:
    return GraphBlock.from_structures([Structure.from_ase(atoms) for atoms in images], cutoff)


def evaluated(atoms: ase.Atoms, correction: Dispersion | None = None) -> Evaluation:
    """Results for atoms where they are: a structure would wrap them."""
    block = block_of([atoms])
    frac = np.linalg.solve(block.cell[0].T, atoms.positions.T).T
    return (correction or d3()).evaluate(replace(block, frac_coord=frac))


def calculator(correction: Dispersion, **settings: object) -> DFTD3:
    lengths = {"disp2": "cutoff", "width2": "width", "disp3": "three_body_cutoff", "width3": "three_body_width"}
    cutoffs = {key: getattr(correction, name) for key, name in lengths.items()}
    tweaks = {name: getattr(correction, name) for name in ("s6", "s8", "s9", "a1", "a2", "alp")}
    settings = {"params_tweaks": tweaks, **settings}
    return DFTD3(damping="d3bj", realspace_cutoff={**cutoffs, "cn": correction.coordination_cutoff}, **settings)


@pytest.mark.parametrize("functional", DAMPING)
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_calculator_of_the_library(case: str, functional: str) -> None:
    atoms, correction = CASES[case](), d3(functional=functional)
    found = evaluated(atoms, correction)
    # The library is right for slabs in the xy plane and for chains if all atoms are in the cell.
    atoms.positions += np.where(atoms.pbc, 0.0, 40.0)
    atoms.cell = np.where(atoms.pbc[:, None], atoms.cell.array, np.eye(3) * 80.0 * atoms.pbc.any())
    # Its own parameters for the functional, without the three-body term.
    atoms.calc = calculator(correction, params_tweaks={"method": functional, "atm": False})
    atoms.wrap()
    assert found.energy[0] < -0.01
    assert_allclose(found.energy[0], atoms.get_potential_energy(), rtol=1e-12)
    assert_allclose(found.forces, atoms.get_forces(), atol=1e-12)
    if atoms.pbc.any():
        expected = atoms.get_stress(voigt=False)
        assert_allclose(found.virial[0] / atoms.get_volume(), expected, atol=1e-13)
    assert np.isfinite(found.stress).all() == atoms.pbc.all()
    if atoms.pbc.all():
        assert_allclose(found.stress[0], expected, atol=1e-13)


def test_the_three_body_term_is_that_of_the_library_and_repulsive() -> None:
    atoms, correction = CASES["silicon"](), d3("d3-atm")
    found = evaluated(atoms, correction)
    atoms.calc = calculator(correction, params_tweaks={"method": "pbe", "atm": True})
    assert_allclose(found.energy[0], atoms.get_potential_energy(), rtol=1e-12)
    assert_allclose(found.forces, atoms.get_forces(), atol=1e-12)
    assert_allclose(found.stress[0], atoms.get_stress(voigt=False), atol=1e-13)
    # 12.9 meV/atom in undistorted silicon with the library's cutoff of 40 bohr.
    assert 0.010 < (found.energy[0] - evaluated(atoms).energy[0]) / 2 < 0.014


def test_cutoffs_leave_out_little() -> None:
    atoms = ase.build.bulk("Si")
    near = evaluated(atoms).energy[0]
    far = evaluated(atoms, replace(d3(), cutoff=2 * module.CUTOFF)).energy[0]
    assert 0 < (near - far) / 2 < 1e-4  # eV/atom


@pytest.mark.parametrize("name", ["d3", "d3-atm"])
@pytest.mark.parametrize("case", ["silicon", "slab", "molecule"])
def test_forces_and_virial_are_derivatives_of_the_energy(case: str, name: str) -> None:
    atoms, correction, step = CASES[case](), d3(name), 1e-5
    found = evaluated(atoms, correction)

    def energy(change: Callable[[ase.Atoms, float], None], sign: int) -> float:
        moved = atoms.copy()
        change(moved, sign * step)
        return float(evaluated(moved, correction).energy[0])

    def slope(change: Callable[[ase.Atoms, float], None]) -> float:
        return (energy(change, 1) - energy(change, -1)) / (2 * step)

    def displace(moved: ase.Atoms, length: float) -> None:
        moved.positions[1] += length * np.array([0.6, -0.48, 0.64])

    def strain(moved: ase.Atoms, size: float) -> None:
        deformed = np.eye(3) + size * np.array([[1.0, 0.5, 0], [0.5, -0.3, 0], [0, 0, 0]])
        moved.set_cell(moved.cell.array @ deformed)
        moved.positions = moved.positions @ deformed

    assert_allclose(-slope(displace), found.forces[1] @ [0.6, -0.48, 0.64], atol=2e-7)
    virial = found.virial[0]
    assert_allclose(slope(strain), virial[0, 0] + virial[0, 1] - 0.3 * virial[1, 1], atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_energies_are_invariant_and_forces_turn_with_the_atoms(case: str) -> None:
    atoms = CASES[case]()
    found = evaluated(atoms)
    rotation = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
    order = np.random.default_rng(0).permutation(len(atoms))
    other = atoms[order]
    shifts = np.where(atoms.pbc, np.random.default_rng(1).integers(-3, 4, (len(atoms), 3)), 0)
    other.positions += shifts @ atoms.cell.array + [0.4, -0.9, 1.7]
    other.set_cell(other.cell.array @ rotation.T)
    other.positions = other.positions @ rotation.T
    turned = evaluated(other)
    assert_allclose(turned.energy, found.energy, rtol=1e-11)
    assert_allclose(turned.forces, found.forces[order] @ rotation.T, atol=1e-11)
    assert_allclose(turned.virial[0], rotation @ found.virial[0] @ rotation.T, atol=1e-10)
    assert_allclose(found.forces.sum(axis=0), 0.0, atol=1e-12)


@pytest.mark.parametrize("case", ["slab", "chain"])
def test_slabs_and_chains_are_crystals_with_much_vacuum(case: str) -> None:
    atoms = CASES[case]()
    found = evaluated(atoms)
    vacuum = np.eye(3) * 150.0
    atoms.cell = np.where(atoms.pbc[:, None], atoms.cell.array, vacuum)
    atoms.pbc = True
    expected = evaluated(atoms)
    assert_allclose(found.energy, expected.energy, rtol=1e-12)
    assert_allclose(found.forces, expected.forces, atol=1e-12)
    assert_allclose(found.virial, expected.virial, atol=1e-11)


def test_a_supercell_has_the_energy_of_its_cells() -> None:
    atoms = CASES["silicon"]()
    assert_allclose(evaluated(atoms * (2, 1, 3)).energy, 6 * evaluated(atoms).energy, rtol=1e-9)


def test_sheared_cells_are_compact_cells_and_absurd_ones_have_no_energy() -> None:
    atoms = CASES["silicon"]()
    found = evaluated(atoms)
    atoms.set_cell(np.array([[1, 0, 0], [12, 1, 0], [-8, 9, 1]]) @ atoms.cell.array)
    assert module._images(atoms.cell.array, module.CUTOFF) > module.MOST_IMAGES
    sheared = evaluated(atoms)
    assert_allclose(sheared.energy, found.energy, rtol=1e-9)
    assert_allclose(sheared.forces, found.forces, atol=1e-9)
    assert_allclose(sheared.virial, found.virial, atol=1e-8)
    crushed = d3().evaluate(replace(block_of([ase.build.bulk("Cu")]), cell=np.eye(3)[None] * 0.3))
    assert np.isnan(crushed.energy).all()
    assert np.isnan(crushed.forces).all()


def test_an_isolated_atom_has_no_dispersion_but_its_images_have() -> None:
    alone = evaluated(ase.Atoms("Xe"))
    assert alone.energy[0] == 0
    assert not alone.forces.any()
    assert evaluated(ase.Atoms("Xe", cell=np.eye(3) * 6.0, pbc=True)).energy[0] < -0.01


def test_bits_depend_on_nothing_but_the_structure() -> None:
    images = [make() for make in CASES.values()] * 2
    block, correction = block_of(images), d3()
    found = correction.evaluate(block)
    alone = [correction.evaluate(block.take([row])) for row in range(len(block))]
    backwards = correction.evaluate(block.take(np.arange(len(block))[::-1]))
    with ThreadPoolExecutor(4) as pool:
        beside_others = list(pool.map(lambda row: correction.evaluate(block.take([row])), range(len(block))))
    for each in (alone, beside_others):
        assert_array_equal(np.concatenate([one.energy for one in each]), found.energy)
        assert_array_equal(np.concatenate([one.forces for one in each]), found.forces)
        assert_array_equal(np.concatenate([one.stress for one in each]), found.stress)
    assert_array_equal(backwards.energy[::-1], found.energy)
    assert_array_equal(backwards.virial[::-1], found.virial)


def test_a_library_with_openmp_uses_one_thread() -> None:
    library = ctypes.CDLL(torch._C.__file__)
    if not hasattr(library, "omp_set_num_threads"):
        pytest.skip("this build of PyTorch does not use OpenMP")

    def numbers() -> list[int]:
        library.omp_set_num_threads(3)
        before = library.omp_get_max_threads()
        with one_thread(library):
            inside = library.omp_get_max_threads()
        return [before, inside, library.omp_get_max_threads()]

    with ThreadPoolExecutor(1) as pool:  # the setting belongs to a thread, and this one ends
        assert pool.submit(numbers).result() == [3, 1, 3]


@pytest.fixture(scope="module")
def model(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Function that makes a model file for three metals with other metadata."""
    folder = tmp_path_factory.mktemp("models")

    def make(factor: float = 1.0, **metadata: object) -> Path:
        name = "".join(character for character in repr((factor, metadata)) if character.isalnum())
        return altered(exported("float32"), folder / f"{name}.onnx", factor, **metadata)

    return make


def of(name: str, *paths: Path) -> Dispersion | None:
    return Dispersion.of(name, {str(path): OnnxPotential.load(path, threads=1).metadata for path in paths})


def test_a_sum_is_the_sum_of_its_parts(model: Model) -> None:
    network = OnnxPotential.load(model(energy_scheme="mp-uncorrected"), threads=1)
    correction = Dispersion.of("d3", {"m": network.metadata})
    assert correction == d3()
    potential = with_dispersion(network, correction)
    assert isinstance(potential, DispersionCorrected)
    assert (potential.cutoff, potential.elements, potential.slots) == (CUTOFF, ELEMENTS, network.slots)
    images = [ase.build.fcc111("Cu", (1, 1, 2), vacuum=5.0), ase.Atoms("Au2", [[0, 0, 0], [2.6, 0, 0]])]
    structures = [*probe_structures(ELEMENTS, 4, 5), *map(Structure.from_ase, images)]
    block = GraphBlock.from_structures(structures, CUTOFF)
    plain, added, found = network.evaluate(block), d3().evaluate(block), potential.evaluate(block)
    for name in ("energy", "forces", "stress", "virial"):
        assert_array_equal(getattr(found, name), getattr(plain, name) + getattr(added, name))
    assert np.isfinite(found.stress).all(axis=(1, 2)).tolist() == [True] * 4 + [False] * 2
    assert with_dispersion(network, None) is network


def test_an_ensemble_is_corrected_once_and_its_spread_is_kept(model: Model) -> None:
    paths = [model(factor, energy_scheme="r2scan") for factor in (1.0, 1.03)]
    ensemble = Ensemble.load(paths, threads=1)
    correction = of("d3", *paths)
    assert correction == d3(functional="r2scan")
    block = GraphBlock.from_structures(list(probe_structures(ELEMENTS, 3, 5)), CUTOFF)
    plain, found = ensemble.evaluate(block), with_dispersion(ensemble, correction).evaluate(block)
    added = found.energy - plain.energy
    assert_allclose(
        found.properties["energy_members"] - plain.properties["energy_members"], added[:, None].repeat(2, 1)
    )
    assert_array_equal(found.properties["energy_std"], plain.properties["energy_std"])
    assert_array_equal(found.properties["forces_std"], plain.properties["forces_std"])


def test_elements_without_parameters_get_a_status() -> None:
    potential = with_dispersion(EmtPotential(elements=(13, 29, 110)), d3())
    assert potential.elements == (13, 29)
    images = [ase.build.bulk("Cu"), ase.Atoms("AlDs", [[0, 0, 0], [2, 2, 2]], cell=np.eye(3) * 4.0, pbc=True)]
    rows = score_block(block_of(images, 5.0), potential)
    assert rows["status"].tolist() == [OK, UNKNOWN_ELEMENT]
    with pytest.raises(UnknownElementError, match=r"no parameters for the elements \[110\]"):
        d3().evaluate(block_of(images))
    # The library has parameters for every element that is listed: a pair of atoms attracts.
    pairs = [ase.Atoms(numbers=[number] * 2, positions=[[0, 0, 0], [0, 0, 4.0]]) for number in sorted(module.ELEMENTS)]
    assert (d3().evaluate(block_of(pairs)).energy < -1e-4).all()


def test_parameters_are_those_of_the_library() -> None:
    numbers, positions = np.array([6, 8, 14]), np.array([[0, 0, 0], [0, 0, 3.0], [0, 4.0, 1.0]])
    structure = DispersionModel(numbers, positions)
    for functional, (s8, a1, a2) in DAMPING.items():
        own = RationalDampingParam(s8=s8, a1=a1, a2=a2, s9=1.0)
        theirs = RationalDampingParam(method=functional, atm=True)
        energies = [structure.get_dispersion(one, grad=False)["energy"] for one in (own, theirs)]
        assert energies[0] == energies[1]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"origin": {"functional": "PBEsol"}}, r"m\.onnx: the energies of this model follow PBEsol, for which"),
        ({"origin": {"functional": "ωB97M-D3(BJ)"}}, r"m\.onnx: the energies of this model follow ωB97M-D3\(BJ\)"),
        ({}, r"m\.onnx: the energy scheme own names no functional.*`--scheme` of `equiscreen import` or"),
        ({"energy_scheme": "mp-uncorrected", "outputs": []}, r"m\.onnx: the model predicts no energy"),
    ],
)
def test_models_without_a_known_functional_are_refused_by_name(
    model: Model, metadata: dict[str, object], message: str
) -> None:
    stated = OnnxPotential.load(model(), threads=1).metadata
    with pytest.raises(ConfigError, match=message) as refused:
        Dispersion.of("d3", {"m.onnx": replace(stated, **metadata)})
    assert "\n" not in str(refused.value)


def test_functionals_are_read_from_the_scheme_or_from_the_origin(model: Model) -> None:
    stated = OnnxPotential.load(model(), threads=1).metadata
    for changes, functional in (
        ({"energy_scheme": "omat24"}, "pbe"),
        ({"energy_scheme": "matpes-pbe"}, "pbe"),
        ({"energy_scheme": "mp2020-corrected"}, "pbe"),
        ({"energy_scheme": "own", "origin": {"functional": "PBE(+U)"}}, "pbe"),
        ({"energy_scheme": "own", "origin": {"functional": "r2SCAN"}}, "r2scan"),
    ):
        found = Dispersion.of("d3-atm", {"m.onnx": replace(stated, **changes)})
        assert found == d3("d3-atm", functional)
    assert Dispersion.of("none", {"m.onnx": stated}) is None
    with pytest.raises(ConfigError, match="unknown dispersion 'd4'; did you mean 'd3'"):
        Dispersion.of("d4", {"m.onnx": stated})
    both = {name: replace(stated, origin={"functional": name}) for name in ("PBE", "r2SCAN")}
    with pytest.raises(ConfigError, match=r"PBE, r2SCAN: these models follow different functionals \(pbe, r2scan\)"):
        Dispersion.of("d3", both)


def test_a_missing_or_other_library_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"dftd3 .* is installed here, but the run began with 1\.6\.9; install dftd3=="
    ):
        replace(d3(), version="1.6.9").evaluate(block_of([ase.build.bulk("Si")]))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(module, "OLDEST", (99, 0))
            installed_version.cache_clear()
            with pytest.raises(ConfigError, match=r"needs dftd3 99\.0 or later, not .*: pip install 'equiscreen\[prop"):
                installed_version()
        for name in [name for name in sys.modules if name.split(".")[0] == "dftd3"]:
            monkeypatch.setitem(sys.modules, name, None)
        installed_version.cache_clear()
        with pytest.raises(ConfigError, match=r"library dftd3, which is not installed: pip install 'equiscreen\[prop"):
            installed_version()
    finally:
        installed_version.cache_clear()


def test_the_record_has_version_and_parameters() -> None:
    record = d3("d3-atm").record()
    assert record["library"] == f"dftd3 {installed_version()}"
    expected = {"name": "d3-atm", "functional": "pbe", "s6": 1.0, "s9": 1.0, "a1": 0.4289, "cutoff": 50.2}
    assert {name: record[name] for name in expected} == expected
