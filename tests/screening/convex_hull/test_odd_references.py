"""References with other functionals, and malformed entries: each is left out and counted, or read correctly."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError, EquiscreenError
from equiscreen.screening import hull, screen
from equiscreen.screening.chemistry.composition import parsed
from equiscreen.screening.convex_hull.hull import summary
from hypothesis import given, settings
from hypothesis import strategies as st

from .hull_data import write_scores

CASES = Path(__file__).parent / "cases"
# NaCl, whose distance tells whether the odd entry took part.
NACL = 0.0060


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("odd") / "g.zarr"
    featurize(CASES / "candidates.json", out, cutoff=5.0, scheduler="threads")
    return out


@pytest.fixture(scope="module")
def scores(graphs: Path, sevennet_model: Path) -> Path:
    return Path(str(screen(graphs, sevennet_model, graphs.with_name("s.zarr"), scheduler="threads").encoding["source"]))


def above(found: xr.Dataset) -> dict[str, float]:
    return dict(zip(found["formula"].values.tolist(), found["energy_above_hull_unrelaxed"].values, strict=True))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("h02_SCAN", "functional SCAN"),
        ("h02_R2SCAN", "functional r2SCAN"),
        ("h12b_UnoHub", "Hubbard U of another scheme"),
        ("h13_nan", "no finite energy"),
        ("h18_formula_str", "no composition with whole numbers of atoms"),
        ("h19_potcar", "pseudopotentials of another scheme"),
        ("h19d_spec", "malformed parameters.potcar_spec"),
        ("h19h_runlist", "malformed parameters.run_type"),
    ],
)
def test_an_odd_entry_is_left_out_and_counted(scores: Path, tmp_path: Path, name: str, reason: str) -> None:
    found = hull(scores, CASES / f"{name}.json", tmp_path / "h.zarr", scheme="mp-uncorrected")
    account = found.attrs["hull"]["references"][0]
    read = len(json.loads((CASES / f"{name}.json").read_text()))
    assert account["left_out_by_reason"] == {reason: 1}
    assert account["entries"] + account["left_out"] == read
    assert f"1 references left out (1 {reason})" in summary(found, "h")
    if name != "h19h_runlist":  # where NaCl itself is left out
        assert above(found)["NaCl"] == pytest.approx(NACL, abs=5e-4)


def test_charges_in_compositions_and_formulas_are_read(scores: Path, tmp_path: Path) -> None:
    found = hull(scores, CASES / "h03b_oxcomp.json", tmp_path / "h.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["references"][0]["left_out"] == 0
    plain = json.loads((CASES / "h03b_oxcomp.json").read_text())
    for entry in plain:
        entry["composition"] = {name.rstrip("1+-"): count for name, count in entry["composition"].items()}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    expected = hull(scores, tmp_path / "plain.json", tmp_path / "p.zarr", scheme="mp-uncorrected")
    assert above(found) == pytest.approx(above(expected), nan_ok=True)
    assert parsed("Na1+ Cl1-") == parsed("Na+1 Cl-1") == parsed("NaCl")
    assert parsed("Fe3+2 O2-3") == parsed("Fe2O3")
    for text in ("SO42-", "Na1+Cl1-2-", "+", "Fe 2+", ""):
        with pytest.raises(ConfigError):
            parsed(text)


def test_a_bad_row_leaves_out_itself(scores: Path, tmp_path: Path) -> None:
    whole = hull(scores, CASES / "h20.csv", tmp_path / "a.zarr", scheme="mp-uncorrected")
    found = hull(scores, CASES / "h20b_frac.csv", tmp_path / "b.zarr", scheme="mp-uncorrected")
    assert above(found) == pytest.approx(above(whole), nan_ok=True)
    assert found.attrs["hull"]["references"][0]["left_out_because"] == {
        "h": "no composition with whole numbers of atoms: 'Fe0.95O'"
    }


def test_formation_energies_as_energies_above_hull_are_told(scores: Path, tmp_path: Path) -> None:
    elements = [entry for entry in json.loads((CASES / "h00_base.json").read_text()) if len(entry["composition"]) == 1]
    (tmp_path / "elements.json").write_text(json.dumps(elements))
    found = hull(scores, tmp_path / "elements.json", tmp_path / "h.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["without_compounds"] == 6
    assert "warning: for 6 structures, no reference is a compound of their elements" in summary(found, "h")


def test_ids_that_are_no_text_leave_out_no_entry(scores: Path, tmp_path: Path) -> None:
    entries = json.loads((CASES / "h00_base.json").read_text())
    for place, odd in enumerate((1.5, None, ["a"], {"b": 1}, True)):
        entries[place]["entry_id"] = odd
        entries[place]["data"] = {"material_id": odd}
    (tmp_path / "ids.json").write_text(json.dumps(entries))
    found = hull(scores, tmp_path / "ids.json", tmp_path / "h.zarr", scheme="mp-uncorrected")
    expected = hull(scores, CASES / "h00_base.json", tmp_path / "e.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["references"][0]["left_out"] == 0
    assert above(found) == above(expected)


def test_absurd_counts_and_schemes_leave_out_their_rows(scores: Path, tmp_path: Path) -> None:
    rows = [("Na", -1.3), ("Cl2", -1.8), ("K", -1.05), ("Fe", -8.4), ("NaCl", -3.39), ("Na" + "9" * 400, -1.0)]
    (tmp_path / "t.csv").write_text("formula,energy_per_atom\n" + "".join(f"{f},{e}\n" for f, e in rows))
    found = hull(scores, tmp_path / "t.csv", tmp_path / "a.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["references"][0]["left_out"] == 1
    schemes = [3, *[None] * (len(rows) - 1)]
    table = {"formula": [f for f, _ in rows[:-1]], "energy_per_atom": [e for _, e in rows[:-1]], "scheme": schemes[:-1]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = hull(scores, tmp_path / "t.parquet", tmp_path / "b.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["references"][0]["left_out_by_reason"] == {"malformed energy scheme": 1}
    entries = [*json.loads((CASES / "h00_base.json").read_text())]
    entries[-1]["composition"] = {"Fe": 1e308, "S": 1e308}
    (tmp_path / "e.json").write_text(json.dumps(entries))
    found = hull(scores, tmp_path / "e.json", tmp_path / "c.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["references"][0]["left_out"] == 1


# Values that somebody may find in a file of entries, in place of those that belong there.
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(
        [float("nan"), float("inf"), -1e300, 10**30, -3.3, 0, [], {}, [1], {"a": 1}, [[]], [{}], "GGA", "1.5"]
    ),
)
PLACES = ("composition", "energy", "entry_id", "parameters", "data", "structure", "run_type", "xc", "input", "incar")
INNER = ("run_type", "hubbards", "potcar_spec", "potcar_symbols", "oxide_type", "sulfide_type", "oxidation_states")
INNER += ("calc_type", "functional", "incar", "potcar", "METAGGA", "GGA", "LDAU", "LDAUU", "IVDW", "matpes_id")


@pytest.fixture(scope="module")
def own_scores(graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Scores of NaCl and others at sound energies, without a model."""
    store = GraphStore(graphs)
    energies = -3.0 * store.n_atoms.astype(np.float64)
    path = write_scores(tmp_path_factory.mktemp("own") / "s.zarr", store, energies)
    return lambda: path


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.one_of(st.none(), st.sampled_from(INNER)), ODD), max_size=3))
def test_whatever_stands_in_an_entry_it_is_used_or_counted(
    own_scores: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str | None, Any]]
) -> None:
    entries = json.loads((CASES / "h00_base.json").read_text())
    odd = entries[6]  # NaCl
    for place, inner, sampled in changes:
        value = deepcopy(sampled)  # else one object would stand in several places
        if inner is not None and isinstance(odd.get(place), dict):
            odd[place][inner] = value
        else:
            odd[place] = value
    path = tmp_path_factory.mktemp("odd") / "entries.json"
    path.write_text(json.dumps(entries))
    try:
        found = hull(own_scores(), path, path.with_name("h.zarr"), scheme="mp-uncorrected")
    except EquiscreenError as error:
        pytest.fail(f"the whole file is refused: {error}")
    account = found.attrs["hull"]["references"][0]
    assert account["entries"] + account["left_out"] == len(entries)
    assert not np.isinf(found["energy_above_hull"].values).any()


def test_task_documents_are_read_as_entries(scores: Path, tmp_path: Path) -> None:
    """Energies that stand under `output`, as atomate and emmet write them, with the composition or the structure."""
    entries = json.loads((CASES / "h00_base.json").read_text())
    tasks: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        size = sum(entry["composition"].values())
        output = {"energy": entry["energy"], "energy_per_atom": entry["energy"] / size}
        task: dict[str, Any] = {
            "task_id": f"mp-{number}",
            "run_type": entry["parameters"]["run_type"],
            "output": output,
            "input": {"hubbards": entry["parameters"].get("hubbards", {})},
        }
        if number % 2:
            symbols = [symbol for symbol, count in entry["composition"].items() for _ in range(int(count))]
            sites = [
                {"species": [{"element": symbol, "occu": 1}], "abc": [place / len(symbols), 0, 0]}
                for place, symbol in enumerate(symbols)
            ]
            output["structure"] = {"lattice": {"matrix": (np.eye(3) * 20).tolist()}, "sites": sites}
            reduced = min(entry["composition"].values())
            task["composition"] = {symbol: count / reduced for symbol, count in entry["composition"].items()}
        else:
            task["composition"] = entry["composition"]
        tasks.append(task)
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    found = hull(scores, tmp_path / "tasks.json", tmp_path / "t.zarr", scheme="mp-uncorrected")
    expected = hull(scores, CASES / "h00_base.json", tmp_path / "e.zarr", scheme="mp-uncorrected")
    assert found.attrs["hull"]["references"][0]["left_out"] == 0
    assert above(found) == pytest.approx(above(expected), nan_ok=True)
    tasks[0]["output"]["energy_per_atom"] *= 2
    text = json.dumps(tasks).replace('"task_id": "mp-1"', '"task_id": "mp-1", "run_type": "r2SCAN"')
    (tmp_path / "odd.json").write_text(text)
    account = hull(scores, tmp_path / "odd.json", tmp_path / "o.zarr", scheme="mp-uncorrected").attrs["hull"]
    assert account["references"][0]["left_out_by_reason"] == {"contradictory energies": 1, "repeated key": 1}
