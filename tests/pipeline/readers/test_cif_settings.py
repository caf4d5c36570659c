"""Every space group meets every kind of cell: a group is read only in a cell that it leaves unchanged."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest
from equiscreen.pipeline.errors import InvalidStructureError
from equiscreen.pipeline.readers.cif import structure_from_cif
from hypothesis import assume, given, settings
from hypothesis import strategies as st

CASES = Path(__file__).parent / "cif_cases"

HEAD = "data_x\n_cell_length_a {a}\n_cell_length_b {b}\n_cell_length_c {c}\n"
HEAD += "_cell_angle_alpha {alpha}\n_cell_angle_beta {beta}\n_cell_angle_gamma {gamma}\n"
SITES = "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"


def cif(group: str, cell: tuple[float, ...], sites: str = "Na1 Na 0.07 0.21 0.323\n") -> str:
    names = ("a", "b", "c", "alpha", "beta", "gamma")
    return HEAD.format(**dict(zip(names, cell, strict=True))) + group + SITES + sites


CELLS = {  # a cell of each crystal system that has no higher symmetry
    "triclinic": (20.1, 24.2, 28.3, 81.0, 97.0, 103.0),
    "monoclinic": (20.1, 24.2, 28.3, 90.0, 104.0, 90.0),
    "orthorhombic": (20.1, 24.2, 28.3, 90.0, 90.0, 90.0),
    "tetragonal": (20.1, 20.1, 28.3, 90.0, 90.0, 90.0),
    "trigonal": (20.1, 20.1, 28.3, 90.0, 90.0, 120.0),
    "hexagonal": (20.1, 20.1, 28.3, 90.0, 90.0, 120.0),
    "cubic": (20.1, 20.1, 20.1, 90.0, 90.0, 90.0),
}
_HEXAGONAL = {"trigonal", "hexagonal"}
FIT = {  # the cells that a group of each system leaves unchanged
    "triclinic": set(CELLS),
    "monoclinic": {"monoclinic", "orthorhombic", "tetragonal", "cubic"},
    "orthorhombic": {"orthorhombic", "tetragonal", "cubic"},
    "tetragonal": {"tetragonal", "cubic"},
    "trigonal": _HEXAGONAL,
    "hexagonal": _HEXAGONAL,
    "cubic": {"cubic"},
}


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 230), st.sampled_from(sorted(CELLS)))
def test_a_group_takes_only_cells_that_it_leaves_as_they_are(number: int, system: str) -> None:
    """The group is given by its number, its name or its operators."""
    group = gemmi.get_spacegroup_reference_setting(number)
    assume(group.ext != "H" or system != "cubic")  # a cube is also a rhombohedron
    enough = system in FIT[group.crystal_system_str()]
    operators = "".join(f"'{operation.triplet()}'\n" for operation in group.operations())
    ways = [f"loop_\n_space_group_symop_operation_xyz\n{operators}"]
    if group.ext not in {"1", "2"}:  # of two origins, the number alone names neither
        ways += [f"_space_group_IT_number '{number}'\n", f"_symmetry_space_group_name_H-M '{group.xhm()}'\n"]
    for way in ways:
        if enough:
            found = structure_from_cif(cif(way, CELLS[system]))[0]
            assert len(found) == len(list(group.operations()))
        elif "IT_number" not in way or group.crystal_system_str() != "monoclinic":  # a number leaves the axis open
            with pytest.raises(InvalidStructureError, match=r"contradicts the space group|ambiguous space group"):
                structure_from_cif(cif(way, CELLS[system]))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["Na", "Cl", "Fe", "O", "H", "Zr"]),
    st.sampled_from(["", "1", "1A", "(2)", "'", "_b"]),
    st.sampled_from(["", "3+", "2-", "+", "-", "+2"]),
)
def test_labels_and_charges_name_one_element(symbol: str, rest: str, charge: str) -> None:
    expected = gemmi.Element(symbol).atomic_number
    for kind in (f"{symbol}{charge}", "?", "."):
        site = f'"{symbol}{rest}" {kind} 0.1 0.2 0.3\n'
        assert structure_from_cif(cif("", CELLS["triclinic"], site))[0].atomic_number.tolist() == [expected]


@pytest.mark.parametrize(
    "text",
    ["Fe0.5Ni0.5", "Fe/Ni", "Fe,Ni", "Fe+Ni", "Fe|Ni", "Fe;Ni", "FeNi", "Fe-Ni", "CO", "NO", "CS", "M", "X", "Lp"],
)
def test_mixed_and_unknown_sites_are_refused(text: str) -> None:
    for label, kind in ((f"'{text}'", "?"), ("A1", f"'{text}'")):
        with pytest.raises(InvalidStructureError, match=r"element|ambiguous"):
            structure_from_cif(cif("", CELLS["triclinic"], f"{label} {kind} 0.1 0.2 0.3\n"))


def test_magnetic_centerings_double_the_atoms() -> None:
    text = (CASES / "MnF2.mcif").read_text()
    one = "_space_group_symop_magn_centering.xyz\n1 x,y,z,+1\n"
    assert one in text
    cell = structure_from_cif(text.replace(one, f"{one}2 x+1/2,y+1/2,z,-1\n"))[0]  # in no table of settings
    assert np.bincount(cell.atomic_number)[[9, 25]].tolist() == [8, 4]
    start, end = text.index("loop_\n_space_group_symop"), text.index("_cell_length_a")
    with pytest.raises(InvalidStructureError, match=r"magnetic space group .*without its operations"):
        structure_from_cif(text[:start] + text[end:])
