"""Files of a selection preserve the handedness of a crystal in any basis of its lattice, and hold only plain text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ase.io
import gemmi
import moyopy
import numpy as np
import pytest
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.plain_text import extxyz_text, one_line
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.pipeline.readers.optimade import structure_from_optimade
from equiscreen.pipeline.readers.records import structure_from_poscar
from equiscreen.pipeline.structures.structure import Structure
from equiscreen.pipeline.structures.symmetry import find_symmetry
from equiscreen.screening.selection.optimade_folder import (
    STRUCTURES_FILE,
    OptimadeFolder,
    property_names,
    structure_attributes,
)
from equiscreen.screening.selection.structure_files import Batch, CifFolder, ExtxyzFile
from equiscreen.screening.selection.vasp_inputs import VaspFolders
from hypothesis import given
from hypothesis import strategies as st

# Unimodular matrices with determinant -1: a swap of two vectors, an inversion, and a reflection with a shear.
LEFT_HANDED = [
    [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
    [[1, 1, 0], [0, 1, 0], [0, 0, -1]],
]
RIGHT_HANDED = [np.eye(3, dtype=int).tolist(), [[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0], [0, 0, 1]]]

# Space groups of chiral crystals: pairs of mirror images, and groups that hold both hands.
CHIRAL = [1, 4, 19, 76, 78, 92, 96, 144, 145, 152, 154, 169, 170, 178, 179, 198, 199, 212]


def crystal_of(
    cell: gemmi.UnitCell, group: gemmi.SpaceGroup, atoms: dict[str, tuple[float, float, float]]
) -> Structure:
    """The crystal of a space group with an atom of each symbol at a fractional position."""
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup = cell, group
    for symbol, fract in atoms.items():
        site = gemmi.SmallStructure.Site()
        site.label = site.type_symbol = symbol
        site.element, site.fract = gemmi.Element(symbol), gemmi.Fractional(*fract)
        small.add_site(site)
    small.setup_cell_images()
    sites = small.get_all_unit_cell_sites()
    numbers = [site.element.atomic_number for site in sites]
    basis = np.array(small.cell.orth.mat.tolist()).T
    return Structure.from_fractional(numbers, basis, [site.fract.tolist() for site in sites])


def quartz(number: int) -> Structure:
    """Quartz of space group 152 (P3_121) or 154 (P3_221)."""
    cell = gemmi.UnitCell(4.9134, 4.9134, 5.4052, 90, 90, 120)
    atoms = {"Si": (0.4697, 0, 1 / 3), "O": (0.4135, 0.2669, 0.4524)}
    crystal = crystal_of(cell, gemmi.find_spacegroup_by_number(152), atoms)
    hand = [1, 1, 1] if number == 152 else [1, 1, -1]  # a mirror image of the positions and of the cell
    positions = crystal.frac_coord @ crystal.cell
    return Structure.from_cartesian(crystal.atomic_number, positions * hand, crystal.cell, True)


def in_basis(structure: Structure, basis: list[list[int]]) -> Structure:
    """The same atoms in another basis of the same lattice."""
    return Structure.from_cartesian(
        structure.atomic_number, structure.positions, np.array(basis) @ structure.cell, True
    )


def space_group(structure: Structure) -> int:
    """Space group of a structure, which is first brought into a right-handed basis by its Cartesian positions."""
    cell = structure.cell if np.linalg.det(structure.cell) > 0 else structure.cell[[1, 0, 2]]
    frac = np.linalg.solve(cell.T, structure.positions.T).T
    found = moyopy.MoyoDataset(
        moyopy.Cell(cell.tolist(), frac.tolist(), structure.atomic_number.tolist()), symprec=1e-3
    )
    return int(found.number)


@pytest.mark.parametrize("number", [152, 154])
def test_every_format_keeps_the_hand(number: int, tmp_path: Path) -> None:
    crystals = [in_basis(quartz(number), basis) for basis in (*LEFT_HANDED, *RIGHT_HANDED)]
    assert [space_group(crystal) for crystal in crystals] == [number] * 6
    names = [f"{place}" for place in range(6)]
    batch = Batch(names, crystals, {}, ())
    writers = (CifFolder(tmp_path / "cif"), ExtxyzFile(tmp_path / "s.extxyz"), VaspFolders(tmp_path / "vasp"))
    for writer in writers:
        writer.write(batch)
        writer.close()
        assert writer.left_out == []
    cifs = [structure_from_cif((tmp_path / "cif" / f"{name}.cif").read_text())[0] for name in names]
    poscars = [structure_from_poscar((tmp_path / "vasp" / name / "POSCAR").read_text()) for name in names]
    images = [Structure.from_ase(atoms) for atoms in ase.io.read(tmp_path / "s.extxyz", index=":")]
    for read in (cifs, poscars, images):
        assert [space_group(crystal) for crystal in read] == [number] * 6


def chiral_crystal(number: int) -> Structure:
    """A crystal in general positions of a chiral space group."""
    group = gemmi.find_spacegroup_by_number(number)
    system = group.crystal_system_str()
    angles = {"triclinic": (81, 97, 104), "monoclinic": (90, 103, 90)}
    angles |= dict.fromkeys(("trigonal", "hexagonal"), (90, 90, 120))
    lengths = {"cubic": (11.0,) * 3} | dict.fromkeys(("tetragonal", "trigonal", "hexagonal"), (8.6, 8.6, 11.4))
    cell = gemmi.UnitCell(*lengths.get(system, (6.3, 7.4, 8.9)), *angles.get(system, (90, 90, 90)))
    return crystal_of(cell, group, {"Si": (0.31, 0.13, 0.07), "O": (0.11, 0.42, 0.23), "N": (0.43, 0.21, 0.17)})


def hand(structure: Structure) -> float:
    """A pseudoscalar of the atoms: it does not depend on rotations or the cell, and a mirror image has the opposite."""
    block = GraphBlock.from_structures([structure], 6.0)
    vectors = block.displacements()
    lengths = np.linalg.norm(vectors, axis=1)
    numbers = block.atomic_number.astype(float)
    sums = [
        np.stack([np.bincount(block.receiver, vectors[:, axis] * weight, len(numbers)) for axis in range(3)], axis=1)
        for weight in (numbers[block.sender], np.exp(-lengths), (6.0 - lengths) ** 3)
    ]
    return float(np.einsum("na,na->", sums[0], np.cross(sums[1], sums[2])) / len(numbers))


@pytest.mark.parametrize("number", CHIRAL)
def test_the_hand_of_any_chiral_crystal_is_kept(number: int, tmp_path: Path) -> None:
    crystal = chiral_crystal(number)
    crystals = [in_basis(crystal, basis) for basis in (*LEFT_HANDED, *RIGHT_HANDED)]
    names = [f"{place}" for place in range(len(crystals))]
    batch = Batch(names, crystals, {}, ())
    for writer in (CifFolder(tmp_path / "cif"), ExtxyzFile(tmp_path / "s.extxyz"), VaspFolders(tmp_path / "vasp")):
        writer.write(batch)
        writer.close()
    read = [structure_from_cif((tmp_path / "cif" / f"{name}.cif").read_text())[0] for name in names]
    read += [structure_from_poscar((tmp_path / "vasp" / name / "POSCAR").read_text()) for name in names]
    read += [Structure.from_ase(atoms) for atoms in ase.io.read(tmp_path / "s.extxyz", index=":")]
    expected = hand(crystal)
    assert abs(expected) > 1e-3
    assert np.allclose([hand(one) for one in read], expected, rtol=1e-5)
    assert {space_group(one) for one in read} == {number}


@pytest.mark.parametrize("number", [152, 154])
def test_symmetry_of_a_left_handed_cell(number: int) -> None:
    for basis in (*LEFT_HANDED, *RIGHT_HANDED):
        found = find_symmetry(in_basis(quartz(number), basis), 1e-3)
        assert found is not None
        assert found.number == number


@given(st.sampled_from([*LEFT_HANDED, *RIGHT_HANDED]), st.sampled_from([152, 154]))
def test_a_right_handed_basis_of_the_same_atoms(basis: list[list[int]], number: int) -> None:
    crystal = in_basis(quartz(number), basis)
    right = crystal.right_handed()
    assert np.linalg.det(right.cell) > 0
    assert np.allclose(right.cell @ right.cell.T, crystal.cell @ crystal.cell.T, rtol=0, atol=1e-12)
    shift = np.linalg.solve(crystal.cell.T, (right.positions - crystal.positions).T)
    assert np.allclose(shift, np.rint(shift), rtol=0, atol=1e-9)


@given(st.text())
def test_text_of_any_kind_is_one_plain_line(text: str) -> None:
    for found in (one_line(text), extxyz_text(text)):
        assert not set(found) & {chr(code) for code in (*range(32), *range(127, 160))}
        assert found.encode().decode() == found


@pytest.mark.parametrize("name", ["a\0b", "\x1b[31mred", "a\nb", "a\u2028b", "\x7f", "\x85", "#;'\"", "data_x loop_"])
def test_ids_with_control_characters_leave_files_readable(name: str, tmp_path: Path) -> None:
    crystal = quartz(152)
    batch = Batch(["x"], [crystal], {"structure_id": np.array([name], dtype=object)}, ())
    for writer in (CifFolder(tmp_path / "cif"), ExtxyzFile(tmp_path / "s.extxyz")):
        writer.write(batch)
        writer.close()
    text = (tmp_path / "cif" / "x.cif").read_bytes()
    assert not set(text) & ({*range(32)} - {10})
    assert len(structure_from_cif(text.decode("ascii"))[0]) == len(crystal)
    assert len(ase.io.read(tmp_path / "s.extxyz", index=":")) == 1


def test_optimade_entries_hold_the_same_atoms_whatever_their_periodicity(tmp_path: Path) -> None:
    positions = [[0.1, 0.2, 0.3], [1.1, 0.9, 1.3], [2.0, 0.4, 2.2]]
    cell = [[3.0, 0.1, 0.0], [0.2, 4.0, 0.0], [0.0, 0.0, 5.0]]
    given = [quartz(152), *(in_basis(quartz(154), basis) for basis in LEFT_HANDED)]
    for axes in ([True, True, False], [False, False, True], [False, False, False]):
        lattice = np.where(np.array(axes)[:, None], cell, 0.0)
        given.append(Structure.from_cartesian([8, 1, 1], positions, lattice, axes))
    writer = OptimadeFolder(tmp_path / "optimade", {})
    writer.write(Batch([str(place) for place in range(len(given))], given, {}, ()))
    writer.close()
    header, info, *lines = (tmp_path / "optimade" / STRUCTURES_FILE).read_text().splitlines()
    assert json.loads(header)["x-optimade"]["meta"]["api_version"]
    assert (json.loads(info)["type"], json.loads(info)["id"]) == ("info", "structures")
    for line, structure in zip(lines, given, strict=True):
        assert structure_from_optimade(json.loads(line)["attributes"]).content_hash() == structure.content_hash()


def test_optimade_formulas() -> None:
    numbers = [8, 8, 8, 8, 13, 13, 1, 1, 1, 1, 1, 1]
    found = structure_attributes(Structure.from_cartesian(numbers, np.eye(12, 3) + np.arange(12)[:, None]))
    assert found["elements"] == ["Al", "H", "O"]
    assert found["elements_ratios"] == [2 / 12, 6 / 12, 4 / 12]
    assert found["chemical_formula_reduced"] == "AlH3O2"
    assert found["chemical_formula_anonymous"] == "A3B2C"
    many = structure_attributes(Structure.from_cartesian(range(1, 61), np.arange(180).reshape(60, 3)))
    letters = re.findall("[A-Z][a-z]?", many["chemical_formula_anonymous"])
    assert letters[:2] + letters[25:29] + letters[52:54] == ["A", "B", "Z", "Aa", "Ba", "Ca", "Ab", "Bb"]


@given(st.lists(st.text(min_size=1), unique=True))
def test_optimade_names_of_columns_are_valid_and_different(columns: list[str]) -> None:
    names = property_names(columns)
    assert list(names) == columns
    assert len(set(names.values())) == len(columns)
    assert all(re.fullmatch("_equiscreen_[a-z0-9_]*", name) for name in names.values())
