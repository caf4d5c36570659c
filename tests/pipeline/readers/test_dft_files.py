"""What DFT programs and potentials write: labels under many names, virials and runs of VASP."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from equiscreen.model.config.config import Config
from equiscreen.pipeline import FeaturizeReport, GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import ConfigError, LabelError, SourceError
from equiscreen.pipeline.readers.records import RawRecord, ReadOptions, read_document
from equiscreen.pipeline.readers.splitting import Document
from equiscreen.pipeline.sources.formats import Format
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given, settings
from hypothesis import strategies as st

from ...conftest import pymatgen_dict, write_extxyz

CASES = Path(__file__).parent / "cases"
VASP = Path(ase.__file__).parent / "test" / "testdata" / "vasp"


def read(source: Path | str, out: Path, **options: Any) -> tuple[FeaturizeReport, Mapping[str, np.ndarray[Any, Any]]]:
    report = featurize(source, out, scheduler="threads", **options)
    store = GraphStore(out)
    block = store.block(0, len(store))
    return report, {**block.structure_labels, **block.atom_labels}


@pytest.mark.parametrize("name", ["x01_REF", "x02_nep", "x03_stress6", "x23_nep_lower"])
def test_labels_are_found_under_the_names_of_other_codes(name: str, tmp_path: Path) -> None:
    """The four files hold the same crystal: REF_ names, a virial, six components, keys in lower case."""
    _, found = read(CASES / "xyz" / f"{name}.xyz", tmp_path / "g.zarr")
    assert found["energy"].tolist() == [-7.5]
    assert found["forces"].tolist() == [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
    expected = [[0.01, 0.004, 0.005], [0.004, 0.02, 0.006], [0.005, 0.006, 0.03]]
    np.testing.assert_allclose(found["stress"][0], expected, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["dft_energy", "Energy", "energy_pbe", "free_energy"]), st.sampled_from(["dft_forces", "F_force"])
)
def test_other_names_are_told_and_not_dropped_in_silence(
    tmp_path_factory: pytest.TempPathFactory, energy: str, forces: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    atoms = probe_structures((13, 29), 1, 0)[0].to_ase()
    atoms.info[energy] = -3.0
    atoms.arrays[forces] = np.ones((len(atoms), 3))
    ase.io.write(folder / "in.extxyz", atoms)
    report, found = read(folder / "in.extxyz", folder / "g.zarr")
    assert not found
    assert f"1 structures have {energy}, which is not read; use --label energy={energy}" in str(report)
    assert f"use --label forces={forces}" in str(report)
    mapping = LabelMapping().with_inline([f"energy={energy}", f"forces={forces}"])
    report, found = read(folder / "in.extxyz", folder / "l.zarr", labels=mapping)
    assert found["energy"].tolist() == [-3.0]
    assert "is not read" not in str(report)


def test_a_virial_is_a_stress_in_units_of_energy(tmp_path: Path) -> None:
    stress = np.array([[0.01, 0.002, 0.003], [0.002, 0.02, 0.004], [0.003, 0.004, 0.03]])
    structure = probe_structures((13, 29), 1, 0)[0]
    record = {**pymatgen_dict(structure), "id": "a"}
    content = {"structure": record, "w": (-structure.volume * stress).tolist(), "e": -1.0}
    (tmp_path / "in.json").write_text(json.dumps([content]))
    for unit, factor in (("eV", 1.0), ("meV", 1e-3)):
        mapping = LabelMapping().with_inline([f"stress=w[{unit}]", "energy=e"])
        _, found = read(tmp_path / "in.json", tmp_path / f"{unit}.zarr", labels=mapping)
        np.testing.assert_allclose(found["stress"][0], stress * factor, atol=1e-12)


def test_a_stress_without_a_volume_is_not_told_as_unread(tmp_path: Path) -> None:
    """Its key is that of a rule; the value has no meaning for a molecule."""
    atoms = probe_structures((13, 29), 1, 0)[0].to_ase()
    atoms.pbc = False
    atoms.info.update(energy=-1.0, stress=np.eye(3))
    ase.io.write(tmp_path / "in.extxyz", atoms)
    report, found = read(tmp_path / "in.extxyz", tmp_path / "g.zarr")
    assert set(found) == {"energy"}
    assert "is not read" not in str(report)
    assert "1 stresses were skipped because the structures have fewer than three periodic directions" in str(report)


def test_frames_of_xdatcar_and_the_crystal_of_chgcar(tmp_path: Path) -> None:
    report, _ = read(CASES / "poscar" / "XDATCAR", tmp_path / "x.zarr")
    assert (report.read, report.stored) == (3, 3)
    frac = GraphStore(tmp_path / "x.zarr").column("frac_coord")
    assert frac[1::2, 0].tolist() == [0.5, 0.51, 0.52]
    report, _ = read(CASES / "poscar" / "CHGCAR", tmp_path / "c.zarr")
    assert (report.read, report.stored) == (1, 1)


@pytest.mark.skipif(not VASP.is_dir(), reason="this version of ASE comes without its test data")
@pytest.mark.parametrize(("name", "form"), [("OUTCAR_example_1", "vasp-out"), ("vasprun_pstress.xml", "vasp-xml")])
def test_ionic_steps_of_vasp(name: str, form: str, tmp_path: Path) -> None:
    shutil.copy(VASP / name, tmp_path / name)
    report, found = read(tmp_path / name, tmp_path / "g.zarr")
    expected = ase.io.read(VASP / name, format=form, index=":")
    assert report.stored == len(expected)
    assert found["energy"].tolist() == pytest.approx([atoms.get_potential_energy() for atoms in expected])
    np.testing.assert_allclose(found["forces"], np.concatenate([atoms.get_forces() for atoms in expected]), atol=1e-8)
    np.testing.assert_allclose(found["stress"][0], expected[0].get_stress(voigt=False), atol=1e-8)
    (tmp_path / "cut.xml").write_bytes((VASP / name).read_bytes()[:4_000])
    with pytest.raises(SourceError, match=r"did the calculation finish\?|unknown format"):
        read(tmp_path / "cut.xml", tmp_path / "cut.zarr")


def test_a_file_of_a_folder_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_extxyz(folder / "good.extxyz", 3)
    (folder / "odd.cif").write_bytes(b"\x00\x01" * 50)
    (folder / "gone.cif").symlink_to(tmp_path / "nowhere")
    report, _ = read(folder, tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (3, 2)
    assert report.read == report.stored + report.failed + report.duplicate


def test_pipes_and_names_with_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.cif")
    with pytest.raises(SourceError, match=r"pipe\.cif is a pipe or a device"):
        featurize("pipe.cif", "g.zarr", scheduler="threads")
    for name in ("a::b.cif", "optimade:x.cif"):
        shutil.copy(Path(__file__).parent / "cif_cases" / "f01_nolabel.cif", name)
        report, _ = read(name, Path(f"{name}.zarr".replace(":", "_")))
        assert report.stored == 1


def test_yaml_is_bounded() -> None:
    for name in ("labels_bomb.yaml", "deep.yaml"):
        for load, kind in ((LabelMapping.load, LabelError), (Config.load, ConfigError)):
            with pytest.raises(
                kind, match=rf"{name}: the (file contains an alias|values are nested more than)"
            ) as caught:
                load(CASES / "yaml" / name)
            assert "\n" not in str(caught.value)


def test_a_label_that_a_file_lacks_is_told_where_others_are_there(tmp_path: Path) -> None:
    structure = probe_structures((28,), 1, 0)[0]
    outputs = {"energy": -5.0, "forces": np.zeros((len(structure), 3)).tolist()}
    record = {"structure": pymatgen_dict(structure), "outputs": outputs, "element": "Ni", "group": "Elastic"}
    (tmp_path / "Ni.json").write_text(json.dumps([record]))
    report, found = read(tmp_path / "Ni.json", tmp_path / "g.zarr", labels=LabelMapping.load("mlearn"))
    assert set(found) == {"energy", "forces"}
    assert "no structure has the labels stress" in str(report)
    (tmp_path / "none.json").write_text(json.dumps([{**record, "outputs": {}}]))
    with pytest.raises(LabelError, match="label"):
        read(tmp_path / "none.json", tmp_path / "n.zarr", labels=LabelMapping.load("mlearn"))


def test_energies_of_ase_calculators_are_read(tmp_path: Path) -> None:
    atoms = probe_structures((13, 29), 1, 0)[0].to_ase()
    atoms.calc = SinglePointCalculator(atoms, energy=-2.0, forces=np.ones((len(atoms), 3)))
    ase.io.write(tmp_path / "in.extxyz", atoms)
    assert read(tmp_path / "in.extxyz", tmp_path / "g.zarr")[1]["energy"].tolist() == [-2.0]


FRAME = "2\n{comment}\nCs 0 0 0\nCl 2 2 2\n"
CUBE = 'Lattice="4 0 0 0 4 0 0 0 4"'
STRESSED = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        *[
            (f"{CUBE} {key}={value}", STRESSED * factor)
            for key, factor in (("stress", 1.0), ("virial", -1 / 64), ("REF_stress", 1.0))
            for value in (
                '"1 2 3 4 5 6"',
                "'1 2 3 4 5 6'",
                "{1 2 3 4 5 6}",
                "[1, 2, 3, 4, 5, 6]",
                '"1 6 5 6 2 4 5 4 3"',
                "[[1, 6, 5], [6, 2, 4], [5, 4, 3]]",
            )
        ],
        ('name="a stress=\\"9\\"" LATTICE=[[4, 0, 0], [0, 4, 0], [0, 0, 4]] stress="1 2 3 4 5 6"', STRESSED),
    ],
)
def test_a_stress_is_read_in_every_form_of_six_or_nine_numbers(comment: str, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(labels_of(comment)["stress"], expected, atol=1e-12)


def labels_of(comment: str) -> Mapping[str, np.ndarray[Any, Any]]:
    record = frame(comment)
    assert record.structure is not None, record.reason
    return LabelMapping().with_ase_defaults().extract(record.fields, 2, record.structure.volume)


def frame(comment: str) -> RawRecord:
    content = FRAME.format(comment=comment).encode()
    return read_document(Document(source="in.xyz", index=0, content=content, format=Format.EXTXYZ), ReadOptions())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=3), st.sampled_from(["pbc", "PBC"]), st.data())
def test_periodicity_is_read_in_every_spelling_and_otherwise_refused(
    axes: list[bool], key: str, data: st.DataObject
) -> None:
    words = [
        data.draw(st.sampled_from(["T", "t", "true", "True", "1"] if x else ["F", "f", "FALSE", "0"])) for x in axes
    ]
    value = data.draw(st.sampled_from([" ".join(words), ", ".join(words)]))
    record = frame(f'{CUBE} {key}="{value}"')
    assert record.structure is not None, record.reason
    assert record.structure.pbc.tolist() == axes
    for odd in ("T T", "T T F F", "yes yes no", "2 0 0", "T T ?"):
        assert "pbc must have one or three values" in frame(f'{CUBE} pbc="{odd}"').reason


def test_a_frame_whose_comment_contradicts_itself_is_refused() -> None:
    for comment in ("energy=-1 energy=-2", "Lattice=[[3,0,0],[0,3,0],[0,0,3]] energy=-1", 'stress="1" stress="2"'):
        assert "the comment line has two values for" in frame(f"{CUBE} {comment}").reason
    # A cell under a name that is not read would make a molecule with the energy of a crystal.
    for name in ("cell", "Cell", "unit_cell", "lattice_vectors", "box"):
        assert f"has {name}, but no Lattice" in frame(f'{name}="4 0 0 0 4 0 0 0 4" energy=-1').reason


def test_labels_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    """The first name is read, as always; a stress and its virial agree if their signs and the volume do."""
    other = 'energy=-1 REF_energy=-2 stress="1 0 0 0 1 0 0 0 1" virial="64 0 0 0 64 0 0 0 64"'
    (tmp_path / "in.xyz").write_text(FRAME.format(comment=f"{CUBE} {other}"))
    report, found = read(tmp_path / "in.xyz", tmp_path / "g.zarr")
    assert found["energy"].tolist() == [-1.0]
    assert "1 structures have REF_energy, which is not read; use --label energy=REF_energy" in str(report)
    assert "1 structures have virial, which is not read; use --label stress=virial[eV]" in str(report)
    same = 'energy=-1 REF_energy=-1 stress="1 0 0 0 1 0 0 0 1" virial="-64 0 0 0 -64 0 0 0 -64"'
    (tmp_path / "in.xyz").write_text(FRAME.format(comment=f"{CUBE} {same}"))
    assert "not read" not in str(read(tmp_path / "in.xyz", tmp_path / "s.zarr")[0])
