"""Comparison of datasets, DFT energies joined to scores, and parquet tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, SourceError, StoreError
from equiscreen.screening import compare, join_energies, open_scores, select, to_parquet
from equiscreen.screening.dataset import reader as rows_module
from equiscreen.screening.dataset.parquet import METADATA_KEY
from equiscreen.screening.dataset.reader import picked, picked_ranges
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from .selection.selection_data import graphs_of_mp, ids, scored_columns, write_dataset

SIZE = 120


@pytest.fixture(scope="module")
def graphs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return graphs_of_mp(data, tmp_path_factory.mktemp("graphs"), SIZE)


@pytest.fixture(scope="module")
def columns(graphs: GraphStore) -> dict[str, Any]:
    return scored_columns(graphs)


@pytest.fixture(scope="module")
def scores(graphs: GraphStore, columns: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scores") / "s.zarr", graphs, columns)


def test_a_dataset_agrees_with_itself(scores: Path) -> None:
    found = compare(scores, scores, top=10)
    assert "energy_above_hull" in found["column"].values
    assert (found["spearman"].values > 1 - 1e-12).all()
    assert (found["top_overlap"].values == 1).all()
    assert (found["largest_difference"].values == 0).all()


def test_rows_are_joined_by_id(scores: Path, graphs: GraphStore, columns: dict[str, Any], tmp_path: Path) -> None:
    """The second dataset has some of the structures in another order, an unknown one and a repeated id."""
    order = np.random.default_rng(1).permutation(SIZE)[:90]
    other = {
        name: [values[i] for i in order] if isinstance(values, list) else values[order]
        for name, values in columns.items()
    }
    noise = np.random.default_rng(2).normal(0, 0.02, 90)
    other["energy_above_hull"] = other["energy_above_hull"] + noise
    other["structure_id"][3] = "elsewhere"
    other["structure_id"][5] = other["structure_id"][4]
    second = write_dataset(tmp_path / "b.zarr", graphs, other)
    found = compare(scores, second, top=20, columns=["energy_above_hull"])
    assert (
        found.sizes["structure"] == 90 - 3
    )  # an unknown id, an id that was overwritten, and the repeated one, which is skipped
    assert found.attrs["repeated_ids"] == 1
    place = {row: position for position, row in enumerate(order.tolist())}
    row_a, row_b = found["row_a"].values, found["row_b"].values
    assert [place[row] for row in row_a.tolist()] == row_b.tolist()
    assert ids(found) == [columns["structure_id"][row] for row in row_a]
    a, b = columns["energy_above_hull"][row_a], other["energy_above_hull"][row_b]
    assert np.array_equal(found["energy_above_hull_difference"].values, b - a, equal_nan=True)
    good = (columns["status"][row_a] == 0) & np.isfinite(a)
    assert found["count"].values.tolist() == [good.sum()]
    assert np.isclose(found["spearman"].values[0], spearmanr(a[good], b[good]).statistic, rtol=0, atol=1e-12)
    assert np.isclose(found["mean_absolute_difference"].values[0], np.abs(b - a)[good].mean(), rtol=1e-12, atol=0)
    best = [set(np.argsort(values[good], kind="stable")[:20].tolist()) for values in (a, b)]
    assert found["top_overlap"].values[0] == len(best[0] & best[1]) / 20


def test_nothing_in_common(scores: Path, graphs: GraphStore, columns: dict[str, Any], tmp_path: Path) -> None:
    names = [f"{name}-other" for name in columns["structure_id"]]
    other = write_dataset(tmp_path / "b.zarr", graphs, {**columns, "structure_id": names})
    with pytest.raises(StoreError, match="no structure_id in common"):
        compare(scores, other)
    with pytest.raises(ConfigError, match="did you mean 'volume'"):
        compare(scores, scores, columns=["volum"])


def test_ids_in_common_by_chance_join_nothing(
    scores: Path, graphs: GraphStore, columns: dict[str, Any], tmp_path: Path
) -> None:
    formulas = list(columns["formula"])
    formulas[2] = "Xe7Kr"
    found = compare(scores, write_dataset(tmp_path / "b.zarr", graphs, {**columns, "formula": formulas}))
    assert found.attrs["other_compositions"] == 1
    assert 2 not in found["row_a"].values
    strangers = write_dataset(tmp_path / "c.zarr", graphs, {**columns, "formula": ["Xe7Kr"] * len(formulas)})
    with pytest.raises(StoreError, match="never for the same composition"):
        compare(scores, strangers)
    one = columns["structure_id"][0]
    (tmp_path / "t.csv").write_text(f"structure_id,energy,formula\n{one},-1.0,Xe7Kr\n")
    with pytest.raises(SourceError, match="is Xe7Kr in this table, but"):
        join_energies(scores, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(f"structure_id,energy,formula\n{one},-1.0,{formulas[0]}\n")
    assert join_energies(scores, tmp_path / "t.csv").attrs["dft"]["joined"] == 1
    (tmp_path / "t.csv").write_text(f"structure_id,energy,formula\n{one},,Xe7Kr\n{one},-1.0,{formulas[0]}\n")
    with pytest.raises(SourceError, match=r"is Xe7Kr in this table, but.*\(1 of 1 ids disagree\)"):
        join_energies(scores, tmp_path / "t.csv")


def test_rows_that_were_joined_by_their_ids_alone_are_told(
    scores: Path, columns: dict[str, Any], tmp_path: Path
) -> None:
    (a, b, *_), (formula, *_) = columns["structure_id"], columns["formula"]
    for text, checked, says in (
        (f"structure_id,energy\n{a},-1.0\n{b},-2.0\n", 0, "the rows were joined by structure_id alone"),
        (f"structure_id,energy,formula\n{a},-1.0,{formula}\n{b},-2.0,\n", 1, "1 of 2 rows were joined by"),
        (f"structure_id,energy,formula\n{a},-1.0,{formula}\n", 1, ""),
    ):
        (tmp_path / "t.csv").write_text(text)
        found = join_energies(scores, tmp_path / "t.csv")
        assert found.attrs["dft"]["compositions_checked"] == checked
        assert found.attrs["dft"].get("note", "").startswith(says)
        assert says in found["dft_energy_per_atom"].attrs["description"]
    assert "note" not in found.attrs["dft"]
    assert compare(scores, scores).attrs["compositions_checked"] == SIZE


def test_energies_of_other_functionals_are_not_compared(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    a, b, c, d, *_ = columns["structure_id"]
    rows = f"{a},-1.0,GGA\n{b},-1.0,\n{c},-1.0,r2SCAN\n{d},-1.0,PBE+U\n"
    (tmp_path / "t.csv").write_text(f"structure_id,energy,run_type\n{rows}")
    scheme = open_scores(scores).attrs["model"]["energy_scheme"]
    assert scheme == "mp-uncorrected"
    facts = join_energies(scores, tmp_path / "t.csv").attrs["dft"]
    assert (facts["joined"], facts["left_out_by_reason"]) == (3, {"functional r2SCAN": 1})
    (tmp_path / "t.csv").write_text(f"structure_id,energy,xc\n{a},-1.0,HSE06\n")
    with pytest.raises(SourceError, match=r"no finite energy.*1 left out: functional HSE06"):
        join_energies(scores, tmp_path / "t.csv")


@pytest.mark.parametrize("by", ["structure_id", "file_name"])
@pytest.mark.parametrize("energy", ["dft_energy_per_atom", "energy"])
def test_energies_that_come_back(scores: Path, by: str, energy: str, tmp_path: Path) -> None:
    found = select(scores, tmp_path / "out", top=20, formats="zarr")
    dft = found["energy_per_atom"].values - np.linspace(-0.1, 0.1, 20)
    values = dft if energy.endswith("per_atom") else dft * found["n_atoms"].values
    order = np.random.default_rng(0).permutation(20)[:15]
    lines = [f"{by},{energy},note"]
    lines += [f"{found[by].values[row]},{values[row]!r},x" for row in order.tolist()]
    lines += ["nobody-knows,-1.0,x", f"{found[by].values[order[0]]},,crashed"]
    (tmp_path / "dft.csv").write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n")
    joined = join_energies(tmp_path / "out", tmp_path / "dft.csv")
    expected = np.full(20, np.nan)
    expected[order] = np.linspace(-0.1, 0.1, 20)[order]
    assert np.allclose(joined["energy_error_per_atom"].values, expected, rtol=0, atol=1e-12, equal_nan=True)
    facts = joined.attrs["dft"]
    assert (facts["joined"], facts["unknown_ids"], facts["first_unknown_ids"]) == (15, 1, ["nobody-knows"])
    assert facts["joined_by"] == by


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("a,b\n1,2\n", ConfigError, "none of the columns"),
        ("structure_id,energy\nx,1.0\nx,2.0\n", SourceError, "'x' has two energies"),
        ("structure_id,energy,energy\nx,1.0,2.0\n", SourceError, "the column energy appears 2 times"),
        ("structure_id,energy,energy.1\nx,1.0,2.0\n", SourceError, "the column energy appears 2 times"),
        ("id,id,energy\nx,y,2.0\n", SourceError, "the column id appears 2 times"),
        ("id,energy,formula,formula\nx,2.0,Na,K\n", SourceError, "the column formula appears 2 times"),
        ("structure_id,energy\nx,1.0\n", ConfigError, "none of the 1 ids"),
        ("structure_id,energy\nx,fast\n", SourceError, "not a number"),
        ("structure_id,energy\nx,\n", SourceError, "no finite energy|not a number"),
        ("", SourceError, "cannot be read"),
    ],
)
def test_tables_that_do_not_fit(text: str, kind: type[Exception], says: str, scores: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(kind, match=says):
        join_energies(scores, tmp_path / "t.csv")


@pytest.mark.parametrize("rows_at_once", [7, 1_000])
def test_parquet_holds_what_the_dataset_holds(
    scores: Path, rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "ROWS_AT_ONCE", rows_at_once)
    table = pq.read_table(to_parquet(scores, tmp_path / "s.parquet"))
    found = open_scores(scores)
    assert set(table.column_names) == {str(name) for name in found.variables}
    words = np.array(found["status"].attrs["flag_meanings"].split())
    for name in table.column_names:
        values = np.array(table[name].to_pylist())
        expected = words[found[name].values] if name == "status" else found[name].values
        if expected.dtype.kind == "f":
            assert np.array_equal(values.astype(float), expected, equal_nan=True), name
        else:
            assert values.tolist() == expected.tolist(), name
    assert table.schema.field("energy_above_hull").metadata[b"units"] == b"eV/atom"
    assert json.loads(table.schema.metadata[METADATA_KEY])["store_hash"] == found.attrs["store_hash"]
    frame = table.to_pandas()
    assert frame["energy_per_atom"].dtype == np.float64
    with pytest.raises(OutputExistsError):
        to_parquet(scores, tmp_path / "s.parquet")
    to_parquet(scores, tmp_path / "s.parquet", columns=["formula"], overwrite=True)
    assert pq.read_table(tmp_path / "s.parquet").column_names == ["formula"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]
    with pytest.raises(ConfigError, match="did you mean"):
        to_parquet(scores, tmp_path / "t.parquet", columns=["formla"])


@given(rows=st.lists(st.integers(0, 999), max_size=30), size=st.sampled_from([1, 3, 16, 400, 5000]), wide=st.booleans())
def test_rows_are_picked_wherever_they_stand(rows: list[int], size: int, wide: bool) -> None:
    values = np.arange(3000).reshape(1000, 3) if wide else np.arange(1000)
    wanted = np.array(rows, dtype=np.int64)
    assert np.array_equal(picked(lambda start, stop: values[start:stop], wanted, size, 1000), values[wanted])
    counts = wanted % 7
    starts = np.minimum(wanted, 1000 - counts)
    expected = [values[begin : begin + count] for begin, count in zip(starts, counts, strict=True)]
    found = picked_ranges(lambda start, stop: values[start:stop], starts, counts, size)
    assert np.array_equal(found, np.concatenate([values[:0], *expected]))
