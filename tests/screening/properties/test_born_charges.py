"""Born charges of the user: read as phonopy reads them, refused if they do not fit, and part of the phonons."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.spacegroup import crystal
from equiscreen.pipeline import Structure, featurize
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening import open_scores
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics.born_files import BornFiles
from equiscreen.screening.properties.lattice_dynamics.phonons import Phonons
from equiscreen.screening.properties.lattice_dynamics.stored import stored_phonopy
from equiscreen.screening.properties.lattice_dynamics.supercells import to_phonopy
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, Material
from numpy.typing import NDArray

from ...emt_potential import EmtPotential

Phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed").Phonopy
pytest.importorskip("seekpath", reason="seekpath is not installed")
phonopy_files = pytest.importorskip("phonopy.file_IO")

SYMPREC = 1e-3
RUTILE = crystal(
    ["Ti", "O"],
    [(0, 0, 0), (0.305, 0.305, 0)],
    spacegroup=136,
    cellpar=[4.59, 4.59, 2.96, 90, 90, 90],
    primitive_cell=1,
)
EPSILON = np.diag([6.0, 6.0, 8.0])


def b2(a: float = 2.95) -> ase.Atoms:
    return bulk("CuAl", "cesiumchloride", a=a)


def write(path: Path, dielectric: NDArray[np.float64], charges: NDArray[np.float64]) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = (dielectric, *charges)
    path.write_text("14.399645\n" + "".join(" ".join(f"{value:.8f}" for value in one.flat) + "\n" for one in rows))
    return path


def charges_of(symmetric: float = 1.5) -> NDArray[np.float64]:
    """Charges of the two atoms of a cubic crystal."""
    return np.array([1.0, -1.0])[:, None, None] * symmetric * np.eye(3)


def test_charges_of_inequivalent_atoms_are_expanded_as_phonopy_expands_them(tmp_path: Path) -> None:
    """Rutile has two of six atoms that are not equivalent, with tensors that are not isotropic."""
    structure = Structure.from_ase(RUTILE)
    atoms, _ = to_phonopy(structure)
    rng = np.random.default_rng(5)
    given = np.diag([3.0, 4.0, 5.0]) + rng.uniform(-2, 2, (6, 3, 3))
    given[:2, [0, 1], [1, 0]] += np.array([[1.0], [-1.0]])  # symmetry permits this difference of the two cations
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon  # noqa: PLC0415 - an extra

    with pytest.warns(UserWarning, match="largely broken"):
        symmetric, epsilon = symmetrize_borns_and_epsilon(given, EPSILON, atoms)
    alone = write(tmp_path / "two" / "BORN", epsilon, symmetric[[0, 2]])
    expected = phonopy_files.parse_BORN(atoms, filename=alone)
    (found,) = BornFiles.at(alone).charges(["rutile"], [structure], SYMPREC)
    assert found is not None
    assert np.abs(symmetric[0] - symmetric[1]).max() > 0.1  # the same tensor in another direction
    assert np.allclose(found.charges, expected["born"], atol=1e-7)
    assert np.allclose(found.dielectric, expected["dielectric"])
    every = write(tmp_path / "six" / "BORN", epsilon, symmetric)
    (again,) = BornFiles.at(every).charges(["rutile"], [structure], SYMPREC)
    assert again is not None
    assert np.allclose(again.charges, found.charges, atol=1e-7)


def test_phonons_with_charges_are_those_of_phonopy(tmp_path: Path) -> None:
    """Frequencies near Gamma and free energies; the forces are those of EMT, the charges are invented."""
    atoms = b2()
    atoms.calc = EMT()
    file = write(tmp_path / "BORN", 3.0 * np.eye(3), charges_of())
    structure = Structure.from_ase(atoms)
    (born,) = BornFiles.at(file).charges(["CuAl"], [structure], SYMPREC)
    stress = atoms.get_stress(voigt=False)
    material = Material(structure, atoms.get_potential_energy(), atoms.get_forces(), stress, SYMPREC, born)
    settings = Phonons(min_length=8.0, mesh=30.0, temperatures=(0.0, 300.0))
    plain = run_stages({0: settings.stages(material)}, EmtPotential())[0]
    split = run_stages({0: replace(settings, nac=True).stages(material)}, EmtPotential())[0]

    unitcell, _ = to_phonopy(structure)
    expected = Phonopy(unitcell, np.array(split.values["phonon_supercell"]).T, primitive_matrix=np.eye(3))
    expected.force_constants = split.tables["force_constants"].reshape(2, -1, 3, 3)
    expected.nac_params = phonopy_files.parse_BORN(expected.primitive, filename=file)
    expected.run_mesh(30.0)
    thermal = expected.run_thermal_properties(temperatures=[300.0], exclude_gamma_acoustic=True)
    free_energy = float(thermal.free_energy[0]) / 96.4853321 / 2
    assert split.values["vibrational_free_energy"] == pytest.approx(free_energy, abs=1e-8)
    assert split.values["vibrational_free_energy"] > plain.values["vibrational_free_energy"] + 1e-4
    along = expected.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 0, 0]).frequencies[0]
    gamma = np.array(split.tables["band_label"]) == "GAMMA"
    highest = split.tables["band_frequency"].reshape(-1, 6)[gamma].max()
    assert highest == pytest.approx(along.max(), abs=1e-6)
    assert highest > plain.tables["band_frequency"].max() + 0.1
    assert split.values["acoustic_frequency"] < 1e-4
    unknown = run_stages({0: replace(settings, nac=True).stages(replace(material, born=None))}, EmtPotential())[0]
    assert (PROPERTY_STATUSES[unknown.status], unknown.note) == (
        "failed",
        "the Born charges of the crystal are not known",
    )


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rutile, cubic = Structure.from_ase(RUTILE), Structure.from_ase(b2())
    folder = tmp_path / "charges"
    folder.mkdir()
    with pytest.raises(
        ConfigError, match=r"holds no Born charges; name the file of each structure ID/BORN or ID\.BORN"
    ):
        BornFiles.at(folder)
    with pytest.raises(ConfigError, match="no such file or folder"):
        BornFiles.at(tmp_path / "chargse")
    write(folder / "CuAl.BORN", np.eye(3), charges_of())
    files = BornFiles.at(folder)
    assert files.charges(["CuAl"], [cubic], SYMPREC)[0] is not None
    slab = replace(cubic, pbc=np.array([True, True, False]))
    assert files.charges(["slab"], [slab], SYMPREC) == [None]
    with pytest.raises(ConfigError, match="no Born charges for TiO2, ZnO; add a file ID/BORN for each"):
        files.charges(["CuAl", "TiO2", "ZnO"], [cubic, rutile, rutile], SYMPREC)
    with pytest.raises(ConfigError, match="the charges of one crystal, but 2 are chosen"):
        BornFiles.at(folder / "CuAl.BORN").charges(["a", "b"], [cubic, cubic], SYMPREC)
    write(folder / "TiO2" / "BORN", EPSILON, np.tile(np.eye(3), (3, 1, 1)))
    files = BornFiles.at(folder)
    with pytest.raises(ConfigError, match=r"charges of 3 atoms, but TiO2 has 6 atoms, 2 of which are not equivalent"):
        files.charges(["TiO2"], [rutile], SYMPREC)
    # The axes of another setting: the tetragonal axis of the tensors is x.
    turned = EPSILON[[2, 1, 0]][:, [2, 1, 0]]
    write(folder / "TiO2" / "BORN", turned, np.array([np.diag([7.0, 5.0, 5.0]), np.diag([-3.5, -2.5, -2.5])]))
    with pytest.raises(ConfigError, match=r"do not have the symmetry of TiO2 \(charges differ by up to 1"):
        files.charges(["TiO2"], [rutile], SYMPREC)
    write(folder / "TiO2.BORN", EPSILON, charges_of())
    with pytest.raises(ConfigError, match="are for the same structure, TiO2; keep one of them"):
        BornFiles.at(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("14.4\n", "needs a dielectric tensor"),
        ("14.4\n1 0 0 0 1 0 0 0\n", "line 2 does not hold nine numbers"),
        ("14.4\n1 0 0 0 1 0 0 0 1\n\n1 0 0 0 1 0 0 0 nan\n", "line 4 does not hold nine numbers"),
        ("14.4\n1 0 0 0 1 0 0 0 -1\n1 0 0 0 1 0 0 0 1\n", "not positive definite"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "BORN").write_text(text)
    with pytest.raises(ConfigError, match=message):
        BornFiles.at(tmp_path / "BORN").charges(["CuAl"], [Structure.from_ase(b2())], SYMPREC)


@pytest.mark.slow
def test_the_command_line_takes_charges(
    exported: Callable[[str], Path], tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The network is untrained, so its crystal is taken as it is."""
    atoms = [b2(), b2(3.1)]
    for name, one in zip(("near", "far"), atoms, strict=True):
        one.info["name"] = name
    ase.io.write(tmp_path / "c.extxyz", atoms, format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=4.5, id_field="name", scheduler="threads")
    write(tmp_path / "charges" / "near.BORN", 3.0 * np.eye(3), charges_of())
    out = tmp_path / "p.zarr"
    words = ["properties", tmp_path / "g.zarr", "--model", exported("float64"), "--no-relax", "--scheduler", "threads"]
    words += ["--born", tmp_path / "charges", "--out", out]
    refused = command_line(*words, "--what", "phonons")
    assert refused.returncode != 0
    assert "no Born charges for far" in refused.stderr
    refused = command_line(*words, "--what", "elastic")
    assert "--born needs phonons; add phonons to --what" in refused.stderr
    write(tmp_path / "charges" / "far" / "BORN", 4.0 * np.eye(3), charges_of(1.0))
    done = command_line(*words, "--what", "phonons")
    assert done.returncode == 0, done.stderr
    found = open_scores(out)
    assert np.allclose(found["dielectric_tensor"].values[:, 0, 0], [3.0, 4.0])
    assert found.attrs["born_charges"] == "charges"
    assert np.allclose(stored_phonopy(out, "far").nac_params["born"], charges_of(1.0))
    assert np.allclose(stored_phonopy(out, "near").nac_params["born"], charges_of())
