"""CIFs: unambiguous files are read; files with contradictions or undetermined atoms are rejected with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import InvalidStructureError
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.pipeline.readers.splitting import documents
from equiscreen.pipeline.sources.discovery import find_files
from equiscreen.pipeline.sources.formats import Format
from hypothesis import given
from hypothesis import strategies as st

CASES = Path(__file__).parent / "cif_cases"
READ = {
    "MnF2.mcif": "F4Mn2",
    "c04c_R-3m_hexname_rhombcell.cif": "Bi2",
    "c09_Fd-3mS.cif": "Si8",
    "c10_Fd-3m_origin1_Z8.cif": "Si8",
    "c11_xyz_only_but_Fm-3m.cif": "Cl4Na4",
    "c18_dum.cif": "CO",
    "c33_P2m_uniquec.cif": "Cl4Na",
    "c36_quoted_num.cif": "Cl4Na4",
    "e20_P63mmc_full.cif": "Mg2",
    "f01_nolabel.cif": "ClNa",
    "f02_type_q.cif": "ClNa",
}
CUBE = (5.64, 5.64, 5.64, 90, 90, 90)
SALT = ("Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5")
SILICON = (5.43, 5.43, 5.43, 90, 90, 90)
HCP = (3.21, 3.21, 5.21, 90, 90, 120)


def cif(
    head: str = "",
    rows: tuple[str, ...] = SALT,
    columns: str = "label type_symbol fract_x fract_y fract_z",
    cell: tuple[object, ...] = CUBE,
) -> str:
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True)), head, "loop_"]
    return "\n".join([*lines, *(f"_atom_site_{name}" for name in columns.split()), *rows, ""])


def named(symbol: str) -> str:
    return f"_symmetry_space_group_name_H-M '{symbol}'"


def formula(text: str) -> str:
    return str(structure_from_cif(text)[0].to_ase().get_chemical_formula())


def reason(text: str) -> str:
    with pytest.raises(InvalidStructureError) as caught:
        structure_from_cif(text)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.iterdir()))
def test_cases(name: str) -> None:
    text = (CASES / name).read_text()
    if name in READ:
        assert formula(text) == READ[name]
    else:
        assert "\n" not in reason(text)


@pytest.mark.parametrize("symbol", ["F m -3 m", "Fm3m", "F 4/m -3 2/m", "F4/m-32/m", "f m -3 m"])
def test_spellings_of_rock_salt(symbol: str) -> None:
    assert formula(cif(named(symbol))) == "Cl4Na4"


@pytest.mark.parametrize("symbol", ["P 63/m m c", "P6_3/mmc", "P6(3)/mmc", "P63/m2/m2/c"])
@pytest.mark.parametrize("third", ["0.333", "0.33", "0.33333"])
def test_rounded_thirds_are_special_positions(symbol: str, third: str) -> None:
    assert formula(cif(named(symbol), (f"Mg1 Mg {third} 0.667 .25",), cell=HCP)) == "Mg2"


@pytest.mark.parametrize(
    ("symbol", "x"), [("Fd-3m :1", 0), ("F d -3 m S", 0), ("Fd-3mZ", 0.125), ("F d 3 m (origin 2)", 0.125)]
)
def test_origins(symbol: str, x: float) -> None:
    rows = (f"Si1 Si {x} {x} {x}",)
    assert formula(cif(named(symbol), rows, cell=SILICON)) == "Si8"
    assert "ambiguous" in reason(cif(named("F d -3 m"), rows, cell=SILICON))
    for evidence in ("_chemical_formula_sum Si\n_cell_formula_units_Z 8", "_exptl_crystal_density_diffrn 2.33"):
        assert formula(cif(f"{named('F d -3 m')}\n{evidence}", rows, cell=SILICON)) == "Si8"


LIES = {
    "contradicts the space group": [
        cif(named("P 4/m m m"), cell=(4, 4.1, 5, 90, 90, 90)),
        cif(named("P n m a"), cell=(5, 6, 7, 90, 91, 90)),
        cif(named("P 63/m m c"), cell=(3.21, 3.21, 5.21, 90, 90, 90)),
        cif(named("P 21/c"), cell=(5, 6, 7, 90, 90, 104)),
    ],
    "contradictory symmetry": [
        cif(f"{named('F m -3 m')}\n_symmetry_Int_Tables_number 221"),
        cif(f"{named('F m -3 m')}\nloop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'"),
    ],
    "do not form a group": [cif("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-y,x,z'")],
    "magnetic space group": [cif("_space_group_magn.number_BNS 136.499"), cif("_space_group_magn_name_OG 'P4'")],
    "modulated": [cif("_cell_modulation_dimension 1")],
    "formula": [cif("_chemical_formula_sum 'H2 Cl Na'"), cif("_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 4")],
    "formula units": [cif("_cell_formula_units_Z 4")],
    "volume": [cif("_cell_volume 100")],
    "density": [cif("_exptl_crystal_density_diffrn 2.17")],
    "several loops": [cif() + "loop_\n_atom_site_occupancy\n0.5\n0.5\n"],
    "invalid cell parameter": [cif(cell=(value, 5, 5, 90, 90, 90)) for value in ("0", "-5", "nan", "?", "5,6")]
    + [cif(cell=(5, 5, 5, angle, 90, 90)) for angle in (0, 180, 200, -90)],
}


@pytest.mark.parametrize(("says", "text"), [(says, text) for says, texts in LIES.items() for text in texts])
def test_lies(says: str, text: str) -> None:
    assert says in reason(text)


@pytest.mark.parametrize("number", ["0.5(1)", "?", "1,0", "nan", "inf", "0", "-1", "1.01", "1/2", "0.95", "0.5*"])
def test_occupancies_that_are_not_one(number: str) -> None:
    assert "occupancy" in reason(
        cif("", (f"{SALT[0]} {number}",), "label type_symbol fract_x fract_y fract_z occupancy")
    )


@pytest.mark.parametrize("number", ["1", "1.0000001", "0.9999", ".", "1.00(2)", "1e0", "'1'"])
def test_occupancies_of_one(number: str) -> None:
    assert formula(cif("", (f"{SALT[0]} {number}",), "label type_symbol fract_x fract_y fract_z occupancy")) == "Na"


@given(
    st.sampled_from(["Fe", "Ni", "Cu", "Al", "Ti", "O", "C"]),
    st.sampled_from(["Co", "Zr", "Mn", "N", "S"]),
    st.sampled_from("/,&|;:-"),
)
def test_two_elements_are_no_element(first: str, second: str, between: str) -> None:
    for symbol in (f"{first}{between}{second}", f"{first}0.5{second}0.5", f"{first}0.5{between}{second}0.5"):
        assert reason(cif("", (f"A1 '{symbol}' 0 0 0",)))
        assert reason(cif("", (f"'{symbol}' 0 0 0",), "label fract_x fract_y fract_z"))


@pytest.mark.parametrize("symbol", ["Fe3+", "Fe+3", "FE", "fe", "Fe0+", "'Fe '", "Fe2.5+"])
def test_types_that_are_certain(symbol: str) -> None:
    assert formula(cif("", (f"A1 {symbol} 0 0 0",))) == "Fe"


def test_a_complete_list_is_read_whatever_group_is_named() -> None:
    rows = ("Na1 Na 0 0 0", "Na2 Na 0 .5 .5", "Na3 Na .5 0 .5", "Na4 Na .5 .5 0")
    identity = "loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'"
    assert formula(cif(named("F m -3 m"), rows)) == formula(cif(f"{named('F m -3 m')}\n{identity}", rows)) == "Na4"


def test_a_text_of_several_crystals_is_refused() -> None:
    """Blocks are split at lines that begin with `data_`; elsewhere the second crystal would vanish."""
    assert "2 crystals in one CIF" in reason(cif() + cif().replace("data_x", "data_y"))


def test_symmetry_in_another_block_is_no_symmetry(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text(f"data_global\n{named('F m -3 m')}\n" + cif() + cif(named("F m -3 m")))
    report = featurize(tmp_path / "a.cif", tmp_path / "g.zarr", scheduler="threads")
    assert (report.read, report.stored, report.failed) == (2, 1, 1)
    assert report.reasons == {"symmetry is given only in another data block": 1}


ELSEWHERE = [
    f"{named('F m -3 m')}\n",
    "_space_group.name_H-M_alt 'F m -3 m'\n",
    "_symmetry_Int_Tables_number\n;225\n;\n",
    "loop_ _symmetry_equiv_pos_as_xyz x,y,z -x,-y,-z\n",
    "loop_\n_space_group_symop_id\n_space_group_symop_operation_xyz\n1 x,y,z\n2 -x,-y,-z\n",
]
UNKNOWN = [
    "",
    "_symmetry_space_group_name_H-M ?\n",
    "_symmetry_Int_Tables_number\n;?\n;\n",
    "# _space_group_it_number 1\n",
]


@pytest.mark.parametrize("symmetry", ELSEWHERE)
@pytest.mark.parametrize("own", UNKNOWN)
def test_symmetry_that_follows_the_crystal_in_another_block(symmetry: str, own: str, tmp_path: Path) -> None:
    crystal, other = cif(own), f"data_s\n{symmetry}"
    for text in (crystal + other, other + crystal, crystal + other + cif(named("F m -3 m"))):
        found = cut(text, tmp_path)
        assert found[0] == "symmetry is given only in another data block"
        assert found[1:] in ([], [""])
        if text.count("data_x") == 1:
            assert reason(text) == found[0]


def test_a_symmetry_of_its_own_or_none_anywhere_is_read(tmp_path: Path) -> None:
    crystal = cif()
    unknown = "data_s\n_symmetry_space_group_name_H-M ?\n_audit_creation_method x\n"
    assert cut(crystal + crystal + unknown, tmp_path) == ["", ""]
    assert cut(cif(named("P 1")) + f"data_s\n{named('F m -3 m')}\n", tmp_path) == [""]


def cut(text: str, folder: Path) -> list[str]:
    """Reasons for which the documents of a CIF cannot be read; empty for those that can."""
    (folder / "a.cif").write_text(text)
    with find_files([folder / "a.cif"])[0].open() as stream:
        return [document.reason for document in documents(stream, Format.CIF)]


@pytest.mark.parametrize("tag", ["_symmetry_cell_setting", "_space_group_crystal_system"])
def test_a_crystal_system_needs_its_symmetry(tag: str) -> None:
    assert "the crystal system is cubic, but no symmetry is given" in reason(cif(f"{tag} cubic"))
    assert formula(cif(f"{tag} triclinic")) == "ClNa"
    assert formula(cif(f"{tag} cubic\n{named('P 1')}")) == "ClNa"
    assert formula(cif(f"{tag} cubic\n_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 1")) == "ClNa"


def test_mass_and_electrons_tell_missing_atoms() -> None:
    head = f"{named('F m -3 m')}\n_cell_formula_units_Z 4\n"
    assert formula(cif(f"{head}_chemical_formula_weight 58.44\n_exptl_crystal_F_000 112")) == "Cl4Na4"
    assert "a mass of 58.4 dalton, but the file states 94.47" in reason(cif(f"{head}_chemical_formula_weight 94.47"))
    assert "112 electrons, but the file states 184" in reason(cif(f"{head}_exptl_crystal_F_000 184"))


@pytest.mark.parametrize("label", ["H2O1", "H2O", "Na1K1", "Fe2O3"])
def test_labels_that_count_two_elements_are_refused(label: str) -> None:
    rows = (f"{label} 0 0 0", "Cl1 0.5 0.5 0.5")
    assert "several elements" in reason(cif(rows=rows, columns="label fract_x fract_y fract_z"))


def test_rare_earths_are_not_rhenium() -> None:
    rows = ("A1 RE 0 0 0", "Cl1 Cl 0.5 0.5 0.5")
    assert "rhenium or any rare earth" in reason(cif(rows=rows))
    assert formula(cif("_chemical_formula_sum 'Re Cl'", rows)) == "ClRe"


def test_an_empty_list_of_sites_is_told() -> None:
    assert "the list of sites is empty" in reason(cif(rows=()))


@pytest.mark.parametrize("content", ELSEWHERE)
def test_what_a_save_frame_holds_is_not_lost_in_silence(content: str) -> None:
    assert "save frame (save_s)" in reason(f"{cif()}save_s\n{content}save_\n")
