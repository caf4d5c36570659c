"""Statements of references about their functional count, wherever and in whatever form they appear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline.errors import ConfigError, SourceError
from equiscreen.screening.chemistry.composition import Compositions
from equiscreen.screening.convex_hull.mp2020 import MP2020
from equiscreen.screening.convex_hull.reference_entries import read_entries
from equiscreen.screening.convex_hull.reference_tables import read_table
from equiscreen.screening.convex_hull.references import Gathered, LeftOut, ReadSettings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv

# Each functional as VASP, pymatgen, the Materials Project, MatPES, Alexandria, AFLOW and libxc write it: in fields that
# tell whether a U was used, in fields that need not, and as tags of VASP.
RUN_TYPES = {
    "GGA": ("GGA", "PBE", "gga"),
    "GGA+U": ("GGA+U", "PBE+U", "GGA_U", "PBE_U"),
    "r2SCAN": ("r2SCAN", "R2SCAN", "r2scan"),
    "SCAN": ("SCAN", "Scan"),
    "PBEsol": ("PBEsol", "PBESol"),
    "LDA": ("LDA",),
    "HSE06": ("HSE06",),
    "GGA+vdW": ("PBE+vdW-DFT-D3", "PBE-D3(BJ)"),
}
NAMES = {
    **RUN_TYPES,
    "GGA": (*RUN_TYPES["GGA"], "PAW_PBE", "GGA_X_PBE+GGA_C_PBE", "Perdew-Burke-Ernzerhof"),
    "r2SCAN": (*RUN_TYPES["r2SCAN"], "MGGA_X_R2SCAN+MGGA_C_R2SCAN"),
    "PBEsol": (*RUN_TYPES["PBEsol"], "GGA_X_PBE_SOL+GGA_C_PBE_SOL"),
}
TAGS: Mapping[str, dict[str, Any]] = {
    "GGA": {"GGA": "PE"},
    "GGA+U": {"GGA": "Pe", "LDAU": True, "LDAUU": [5.3, 0]},
    "r2SCAN": {"METAGGA": "R2scan", "GGA": "--"},
    "SCAN": {"METAGGA": "SCAN"},
    "PBEsol": {"GGA": "PS", "METAGGA": "None", "LHFCALC": False},
    "LDA": {"GGA": "CA"},
    "HSE06": {"LHFCALC": ".TRUE.", "HFSCREEN": 0.2, "GGA": "PE"},
    "GGA+vdW": {"GGA": "PE", "IVDW": 12},
}
TASKS = ("Structure Optimization", "Static", "NSCF Line", "DFPT Dielectric")
PARTS = ((), ("parameters",), ("data",), ("input",), ("parameters", "input"), ("calcs_reversed", "input"))
ALLOWED = {"mp-uncorrected": {"GGA", "GGA+U"}, "matpes-pbe": {"GGA"}, "r2scan": {"r2SCAN"}, "omat24": {"GGA", "GGA+U"}}
CORRECTIONS = MP2020()


def put(entry: dict[str, Any], part: tuple[str, ...], key: str, value: object) -> None:
    """Put a statement into a part of an entry; calculations are lists of one."""
    here: Any = entry
    for step in part:
        inner = here.setdefault(step, [{}] if step == "calcs_reversed" else {})
        here = inner[0] if isinstance(inner, list) else inner
    here[key] = value


@st.composite
def statements(draw: st.DrawFn, functional: str) -> tuple[tuple[str, ...], str, object]:
    """A part of an entry, a key and the value that states a functional there."""
    part = draw(st.sampled_from(PARTS))
    kind = draw(st.sampled_from(["run_type", "calc_type", "name", "incar"]))
    if kind == "incar":
        return part, draw(st.sampled_from(["incar", "INCAR"])), TAGS[functional]
    if kind == "name":
        key = draw(st.sampled_from(["functional", "xc", "xc_functional", "_alexandria_xc_functional", "dft_type"]))
        text = draw(st.sampled_from(NAMES[functional]))
        return part, key, [text] if key == "dft_type" else text
    text = draw(st.sampled_from(RUN_TYPES[functional]))
    if kind == "calc_type":
        text = f"{text.replace(' ', '')} {draw(st.sampled_from(TASKS))}"
    return part, kind, draw(st.sampled_from([text, {"@class": "RunType", "value": text}]))


def entry_of(**more: Any) -> dict[str, Any]:
    return {"entry_id": "odd", "composition": {"Na": 1, "Cl": 1}, "energy": -6.8, **more}


def account_of(folder: Path, entry: dict[str, Any], scheme: str, assumed: str | None) -> dict[str, Any]:
    """Account of a file with an entry of which nothing is known, which the assumption lets pass, and another entry."""
    plain = {"entry_id": "plain", "composition": {"Na": 2}, "energy": -2.6}
    (folder / "e.json").write_text(json.dumps([plain, entry]))
    found = Gathered()
    corrections = CORRECTIONS if scheme == "mp-uncorrected" else None
    notes = read_entries(str(folder / "e.json"), ReadSettings(scheme, assumed, Compositions(), corrections), found)
    assert len(found.energy) + notes["left_out"] == 2
    return notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stated")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data(), scheme=st.sampled_from(sorted(ALLOWED)), functional=st.sampled_from(sorted(RUN_TYPES)))
def test_a_stated_functional_beats_the_assumption(
    folder: Path, drawn: st.DataObject, scheme: str, functional: str
) -> None:
    entry = entry_of()
    put(entry, *drawn.draw(statements(functional)))
    notes = account_of(folder, entry, scheme, scheme)
    used = functional in ALLOWED[scheme]
    assert notes["left_out"] == (0 if used else 1), (entry, notes)
    if not used:
        (reason,) = notes["left_out_by_reason"]
        assert reason.startswith("functional ")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data(), both=st.tuples(*[st.sampled_from(sorted(RUN_TYPES))] * 2))
def test_statements_that_contradict_each_other_leave_the_entry_out(
    folder: Path, drawn: st.DataObject, both: tuple[str, str]
) -> None:
    """A name without U or dispersion does not say that there is none; everything else is a contradiction."""
    entry = entry_of()
    given = [drawn.draw(statements(functional)) for functional in both]
    assume_distinct = {(part, key) for part, key, _ in given}
    for statement in given:
        put(entry, *statement)
    notes = account_of(folder, entry, "mp-uncorrected", "mp-uncorrected")
    bases = {functional.partition("+")[0] for functional in both}
    if len(assume_distinct) == 2 and len(bases) == 2:
        assert notes["left_out_by_reason"] == {"contradictory functionals": 1}, entry
    if both[0] == both[1]:
        assert notes["left_out"] == (0 if both[0] in ALLOWED["mp-uncorrected"] else 1), (entry, notes)


@pytest.mark.parametrize(
    ("more", "scheme", "reason"),
    [
        ({"parameters": {"potcar_symbols": ["PAW Na", "PAW Cl"]}}, "r2scan", "functional LDA"),
        ({"potcar": {"functional": "LDA_54"}}, "mp-uncorrected", "functional LDA"),
        ({"input": {"pseudo_potential": {"functional": "PW91"}}, "xc": "PBE"}, "omat24", "pseudopotentials"),
        ({"data": {"potcar_spec": [{"titel": "PAW_GGA Na_pv"}, None]}, "xc": "PBE"}, "omat24", "pseudopotentials"),
        ({"parameters": {"potcar_symbols": ["PBE Na_sv", "PBE Cl"]}}, "matpes-pbe", "pseudopotentials"),
        ({"parameters": {"potcar_symbols": ["PBE Na_pv", "PBE Cl"], "xc": "R2SCAN"}}, "r2scan", None),
        ({"parameters": {"potcar_symbols": ["PBE Na_pv", "PBE Cl"]}}, "matpes-pbe", None),
        ({"parameters": {"potcar_symbols": ["PBE Na_pv", "PBE Cl"]}}, "mp-uncorrected", None),
        ({"parameters": {"hubbards": {"Na": 2.0}}, "functional": "PBE"}, "matpes-pbe", "Hubbard U"),
        ({"parameters": {"is_hubbard": True}, "functional": "r2SCAN"}, "r2scan", "Hubbard U"),
        ({"incar": {"LDAU": True, "LDAUU": {"Na": 2}}}, "matpes-pbe", "Hubbard U"),
        ({"incar": {"LDAU": True, "LDAUU": [0, 0]}}, "matpes-pbe", None),
        ({"run_type": "GGA", "data": {"run_type": "GGA+U"}}, "mp-uncorrected", "contradictory functionals"),
        ({"run_type": "GGA+U", "functional": "PBE"}, "mp-uncorrected", None),
        ({"thermo_type": "R2SCAN"}, "mp-uncorrected", "functional r2SCAN"),
        ({"thermo_type": "GGA_GGA+U", "run_type": "GGA"}, "mp-uncorrected", None),
        ({"data": {"thermo_type": "GGA_GGA+U_R2SCAN"}, "run_type": "GGA"}, "mp-uncorrected", None),
        ({"input": {"hubbards": {"Na": 2.0}, "is_hubbard": True}, "xc": "PBE"}, "matpes-pbe", "functional GGA+U"),
        ({"matpes_id": "matpes-1", "functional": "PBE"}, "mp-uncorrected", "energy scheme matpes-pbe"),
        ({"data": {"calc_type": "Static"}, "xc": None, "functional": ""}, "mp-uncorrected", None),
        ({"data": {"xc": 3}}, "mp-uncorrected", "malformed data.xc"),
        ({"calc_type": ["GGA Static"]}, "mp-uncorrected", "malformed calc_type"),
    ],
)
def test_settings_that_tell_of_another_scheme(
    tmp_path: Path, more: dict[str, Any], scheme: str, reason: str | None
) -> None:
    notes = account_of(tmp_path, entry_of(**more), scheme, scheme)
    assert [found.startswith(reason or "") for found in notes["left_out_by_reason"]] == ([True] if reason else [])


@pytest.mark.parametrize(
    ("composition", "parameters", "reason"),
    [
        ({"Fe": 1, "O": 1}, {"run_type": "GGA+U", "hubbards": {"Fe": 5.3}}, None),
        ({"Fe": 1, "O": 1}, {"run_type": "GGA", "hubbards": {}}, "Hubbard U"),
        ({"Fe": 1, "O": 1}, {"run_type": "GGA"}, "Hubbard U"),
        ({"Fe": 1, "O": 1}, {"run_type": "GGA+U", "hubbards": {"Fe": 4.0}}, "Hubbard U"),
        ({"Fe": 1, "O": 1}, {"functional": "PBE"}, None),  # does not say
        ({"Fe": 2}, {"run_type": "GGA+U", "hubbards": {"Fe": 5.3}}, "Hubbard U"),
        ({"Fe": 1, "S": 1}, {"run_type": "GGA", "hubbards": {"Fe": 0}}, None),
        ({"W": 1, "C": 1}, {"run_type": "GGA", "potcar_symbols": ["PAW_PBE W_sv", "PAW_PBE C"]}, None),
        ({"W": 1, "C": 1}, {"run_type": "GGA", "potcar_symbols": ["PAW_PBE W_pv", "PAW_PBE C"]}, "pseudopotentials"),
        ({"Na": 1, "Cl": 1}, {"run_type": "GGA", "potcar_symbols": ["PBE Na_pv", "PBE Cl"]}, None),
    ],
)
def test_omat24_has_the_settings_of_the_materials_project_but_for_two_pseudopotentials(
    tmp_path: Path, composition: dict[str, int], parameters: dict[str, Any], reason: str | None
) -> None:
    notes = account_of(tmp_path, entry_of(composition=composition, parameters=parameters), "omat24", "omat24")
    assert [found.startswith(reason or "") for found in notes["left_out_by_reason"]] == ([True] if reason else [])


def test_entries_of_matpes_and_r2scan_need_no_assumption(tmp_path: Path) -> None:
    for scheme, more in (
        ("matpes-pbe", {"matpes_id": "m", "functional": "PBE"}),
        ("r2scan", {"calc_type": "R2SCAN Static"}),
    ):
        notes = account_of(tmp_path, entry_of(**more), scheme, None)
        assert notes["left_out_by_reason"] == {"no functional stated": 1}  # the plain one
        assert notes["scheme"] == scheme


def test_a_network_of_ones_own_follows_one_functional(tmp_path: Path) -> None:
    entries = [entry_of(xc="PBE"), entry_of(data={"calc_type": "SCAN Static"})]
    (tmp_path / "e.json").write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"several functionals \(GGA, SCAN\)"):
        read_entries(str(tmp_path / "e.json"), ReadSettings("own", "own", Compositions(), None), Gathered())


def table_account(folder: Path, columns: dict[str, list[Any]], scheme: str, assumed: str | None, kind: str) -> Any:
    """Account of a table of Na and rows of NaCl, of which the first states nothing."""
    size = len(next(iter(columns.values())))
    table = {
        "formula": ["Na", *["NaCl"] * size],
        "energy_per_atom": [-1.3, *[-3.4] * size],
        **{name: [None, *values] for name, values in columns.items()},
    }
    path = folder / f"t.{kind}"
    (pq.write_table if kind == "parquet" else csv.write_csv)(pa.table(table), path)
    corrections = CORRECTIONS if scheme == "mp-uncorrected" else None
    left_out, found = LeftOut(), Gathered()
    read = ReadSettings(scheme, assumed, Compositions(), corrections)
    notes = read_table(str(path), read, found, [], left_out)
    assert len(found.energy) + left_out.by_reason.total() == size + 1
    return {**notes, **left_out.attrs()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    column=st.sampled_from(["run_type", "functional", "xc", "Functional", "parameters.run_type", "xc_functional"]),
    stated=st.lists(st.sampled_from([(f, text) for f, texts in RUN_TYPES.items() for text in texts]), min_size=1),
    scheme=st.sampled_from(sorted(ALLOWED)),
    kind=st.sampled_from(["csv", "parquet"]),
)
def test_tables_are_read_row_by_row_as_entries_are(
    folder: Path, column: str, stated: list[tuple[str, str]], scheme: str, kind: str
) -> None:
    account = table_account(folder, {column: [text for _, text in stated]}, scheme, scheme, kind)
    assert account["left_out"] == sum(functional not in ALLOWED[scheme] for functional, _ in stated)
    assert all(reason.startswith("functional ") for reason in account["left_out_by_reason"])


@pytest.mark.parametrize(
    ("columns", "scheme", "reasons"),
    [
        ({"run_type": ["GGA"], "calc_type": ["r2SCAN Static"]}, "mp-uncorrected", ["contradictory functionals"]),
        ({"run_type": ["GGA+U"], "functional": ["PBE"]}, "mp-uncorrected", []),
        ({"run_type": ["R2SCAN"], "scheme": ["mp-uncorrected"]}, "r2scan", ["energy scheme mp-uncorrected"]),
        ({"potcar.functional": ["PBE_54"]}, "r2scan", []),
        ({"thermo_type": ["GGA_GGA+U"]}, "omat24", []),
        ({"thermo_type": ["GGA_GGA+U_R2SCAN"]}, "omat24", ["functional GGA_GGA+U_R2SCAN"]),
        ({"run_type": [3.5]}, "mp-uncorrected", ["malformed run_type"]),
    ],
)
def test_odd_rows(tmp_path: Path, columns: dict[str, list[Any]], scheme: str, reasons: list[str]) -> None:
    assert list(table_account(tmp_path, columns, scheme, scheme, "parquet")["left_out_by_reason"]) == reasons


def test_r2scan_is_a_scheme_by_itself_and_gga_is_not(tmp_path: Path) -> None:
    columns = {"run_type": ["r2SCAN", "GGA"]}
    account = table_account(tmp_path, columns, "r2scan", None, "csv")
    assert account["left_out_by_reason"] == {"functional GGA": 1, "no energy scheme": 1}
    account = table_account(tmp_path, columns, "mp-uncorrected", None, "csv")
    assert account["left_out_by_reason"] == {"no energy scheme": 2, "functional r2SCAN": 1}
    with pytest.raises(ConfigError, match="several functionals"):
        table_account(tmp_path, columns, "own", "own", "csv")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["formula", "energy_per_atom", "run_type", "material_id"])
@pytest.mark.parametrize("second", ["{}", "{}.1"])
def test_columns_that_are_there_twice_are_refused_by_name(tmp_path: Path, name: str, kind: str, second: str) -> None:
    names = ["formula", "energy_per_atom", "run_type", "material_id", "note", "note", second.format(name)]
    row = pa.table([[f"{value}"] for value in ("NaCl", "-3.4", "GGA", "a", "x", "y", "z")], names=names)
    path = tmp_path / f"t.{kind}"
    (pq.write_table if kind == "parquet" else csv.write_csv)(row, path)
    read = ReadSettings("omat24", "omat24", Compositions(), None)
    with pytest.raises(SourceError, match=rf"t\.{kind}: the column {name} appears 2 times"):
        read_table(str(path), read, Gathered(), [], LeftOut())
