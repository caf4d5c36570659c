"""Selections: which rows are chosen, that every other row is counted, and that files hold what was scored."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, StoreError
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.pipeline.runs.lock import locked
from equiscreen.pipeline.structures.matching import same_crystal
from equiscreen.screening import compare, open_scores, screen, select
from equiscreen.screening.chemistry.elements import chemical_system, elements_of
from equiscreen.screening.dataset import reader as rows_module
from equiscreen.screening.selection.criteria import SelectionCriteria
from equiscreen.screening.selection.select import summary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ...conftest import write_extxyz
from .selection_data import STATUSES, graphs_of_mp, ids, scored_columns, structures_of, write_dataset

SIZE = 150
FEW = settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def graphs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return graphs_of_mp(data, tmp_path_factory.mktemp("graphs"), SIZE)


@pytest.fixture(scope="module")
def columns(graphs: GraphStore) -> dict[str, Any]:
    return scored_columns(graphs)


@pytest.fixture(scope="module")
def scores(graphs: GraphStore, columns: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scores") / "s.zarr", graphs, columns)


def chosen(scores: Path, folder: Path, *args: Any, **words: Any) -> xr.Dataset:
    """Select without writing structures, which is quick."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    return select(scores, folder / "out", *args, **{"formats": ["parquet"], **words})


def test_the_best_of_those_that_fulfil_the_filter(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    found = select(scores, tmp_path / "out", "energy_above_hull < 0.2 and n_atoms <= 12", top=20)
    above = columns["energy_above_hull"]
    good = (above < 0.2) & (columns["n_atoms"] <= 12) & (columns["status"] == 0)
    expected = sorted(np.flatnonzero(good).tolist(), key=lambda row: above[row])[:20]
    assert found["scores_row"].values.tolist() == expected
    assert found["rank"].values.tolist() == list(range(1, 21))
    assert ids(found) == [columns["structure_id"][row] for row in expected]
    assert np.array_equal(found["stress"].values, columns["stress"][expected])
    assert found["energy_above_hull"].attrs["units"] == "eV/atom"
    recipe = found.attrs["selection"]
    assert recipe["rows"] == SIZE
    assert recipe["scores"]["store_hash"] == open_scores(scores).attrs["store_hash"]
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["left_out"] == recipe["left_out"]
    assert found.attrs["status_counts"]["ok"] == 20
    assert "20 of 150 structures, by energy_above_hull, lowest first; skipped: " in summary(found, "out")
    assert not (tmp_path / "out.partial").exists()
    with (tmp_path / "out" / "ranked.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["structure_id"] for row in table] == ids(found)
    assert [float(row["energy_above_hull"]) for row in table] == found["energy_above_hull"].values.tolist()
    assert {row["space_group_symbol"] for row in table} - {"-"}
    assert "ranked.csv" in recipe_files(tmp_path / "out")


def recipe_files(folder: Path) -> Any:
    return json.loads((folder / "recipe.json").read_text())["files_sha256"]


def test_without_top_rows_stay_in_order(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, "n_atoms <= 6")
    good = (columns["n_atoms"] <= 6) & (columns["status"] == 0)
    assert found["scores_row"].values.tolist() == np.flatnonzero(good).tolist()
    order = np.argsort(found["rank"].values)
    assert (np.diff(found["energy_above_hull"].values[order]) >= 0).all()


words_of_a_choice = st.fixed_dictionaries(
    {},
    optional={
        "where": st.sampled_from(
            [
                "energy_above_hull < 0.1",
                "n_atoms in [2, 4, 6]",
                'status in ["ok", "not_converged"]',
                "not has_magnetic_element",
                'has_f_electrons or charge_neutral == "yes"',
            ]
        ),
        "top": st.integers(1, 200),
        "by": st.sampled_from(["max_force", "-energy_per_atom", "volume"]),
        "any_elements": st.sampled_from(["O", "O,S,Se", ["Fe", "Co"]]),
        "excluded_elements": st.sampled_from(["F,Cl", ["O"]]),
        "per_system": st.integers(1, 3),
        "pareto": st.sampled_from(["energy_above_hull,-volume", ["max_force", "n_atoms", "energy_per_atom"]]),
    },
)


@FEW
@given(words=words_of_a_choice)
def test_every_row_is_accounted_for(words: dict[str, Any], scores: Path, tmp_path: Path) -> None:
    try:
        recipe = chosen(scores, tmp_path, **words).attrs["selection"]
    except StoreError as error:
        assert "nothing was selected" in str(error)  # noqa: PT017 - some criteria select nothing
        return
    assert sum(recipe["left_out"].values()) + recipe["selected"] == recipe["rows"] == SIZE
    assert min(recipe["left_out"].values(), default=0) >= 0
    if "top" in words:
        assert recipe["selected"] <= words["top"]


@pytest.mark.slow
@FEW
@given(words=words_of_a_choice, size=st.sampled_from([1, 7, 64, 149]))
def test_chunks_change_nothing(words: dict[str, Any], size: int, scores: Path, tmp_path: Path) -> None:
    found = []
    for rows_at_once in (rows_module.ROWS_AT_ONCE, size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows_module, "ROWS_AT_ONCE", rows_at_once)
            try:
                one = chosen(scores, tmp_path, **words)
                found.append((one["scores_row"].values.tolist(), one.attrs["selection"]["left_out"]))
            except StoreError:
                found.append(([], {}))
    assert found[0] == found[1]


def test_what_means_little_comes_last(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, 'status in ["ok", "exploded", "extrapolating"]', by="n_atoms", top=SIZE)
    last = columns["status"][found["scores_row"].values] != STATUSES.index("ok")
    assert last.any()
    assert (np.diff(last.astype(int)) >= 0).all()
    for some in (last, ~last):
        assert (np.diff(found["n_atoms"].values[some]) >= 0).all()
    fronts = chosen(scores, tmp_path, 'status in ["ok", "exploded"]', pareto="n_atoms,max_force", overwrite=True)
    assert set(columns["status"][fronts["scores_row"].values]) == {STATUSES.index("ok")}


def test_statuses_are_read_by_their_words(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    place = STATUSES.index("not_converged")
    found = chosen(scores, tmp_path, 'status == "not_converged"', by="n_atoms")
    assert found["scores_row"].values.tolist() == np.flatnonzero(columns["status"] == place).tolist()
    left_out = chosen(scores, tmp_path).attrs["selection"]["left_out"]
    for value, word in enumerate(STATUSES[1:], start=1):
        assert left_out[f"{word.replace('_', ' ')} (status)"] == (columns["status"] == value).sum()


def test_elements(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, allowed_elements="Fe, O,Li,P,Si,Mg", excluded_elements=["P"])
    assert all(elements_of(text) <= elements_of("FeOLiSiMg") for text in found["formula"].values.tolist())
    found = chosen(scores, tmp_path, any_elements=["S", "Se"])
    expected = [bool(elements_of(text) & elements_of("SSe")) for text in columns["formula"]]
    assert found.sizes["structure"] == (np.array(expected) & (columns["status"] == 0)).sum()
    with pytest.raises(ConfigError, match="'Xx' is not the symbol"):
        chosen(scores, tmp_path, any_elements="O,Xx")


@settings(FEW, max_examples=3)
@given(most=st.integers(1, 3), prototypes=st.booleans())
def test_no_more_of_a_kind_and_the_best_of_each(most: int, prototypes: bool, scores: Path, tmp_path: Path) -> None:
    limit = {"per_prototype": most} if prototypes else {"per_system": most}
    everything = chosen(scores, tmp_path)
    found = chosen(scores, tmp_path, **limit)
    name = "prototype_label" if prototypes else "chemical_system"
    kinds: dict[str, list[float]] = {}
    for kind, value in zip(everything[name].values.tolist(), everything["rank_value"].values, strict=True):
        kinds.setdefault(kind, []).append(value)
    taken: dict[str, list[float]] = {}
    for kind, value in zip(found[name].values.tolist(), found["rank_value"].values, strict=True):
        taken.setdefault(kind, []).append(value)
    assert {kind: sorted(values) for kind, values in taken.items()} == {
        kind: sorted(values)[:most] for kind, values in kinds.items()
    }


def test_filters_on_columns_that_a_selection_adds(scores: Path, tmp_path: Path) -> None:
    everything = chosen(scores, tmp_path)
    words = everything["charge_neutral"].attrs["flag_meanings"].split()
    neutral = everything["charge_neutral"].values == words.index("yes")
    cubic = np.array(["_cF" in label for label in everything["prototype_label"].values.tolist()])
    for where, good in (
        ('charge_neutral == "yes"', neutral),
        ("not has_magnetic_element", ~everything["has_magnetic_element"].values),
        ('charge_neutral != "yes" and n_atoms < 9', ~neutral & (everything["n_atoms"].values < 9)),
    ):
        found = chosen(scores, tmp_path, where)
        assert ids(found) == [name for name, one in zip(ids(everything), good, strict=True) if one]
    assert cubic.any()
    assert [chemical_system(text) for text in everything["formula"].values.tolist()] == (
        everything["chemical_system"].values.tolist()
    )


def test_uncertainty_makes_worse(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, top=50, uncertainty_weight=2.0)
    value = columns["energy_above_hull"] + 2.0 * columns["energy_above_hull_std"]
    expected = np.argsort(np.where(columns["status"] == 0, value, np.inf), kind="stable")[:50]
    assert found["scores_row"].values.tolist() == expected.tolist()
    assert np.array_equal(found["rank_value"].values, value[expected])
    found = chosen(scores, tmp_path, top=50, by="energy_per_atom", uncertainty_weight=1.0)
    value = columns["energy_per_atom"] + columns["energy_std"] / columns["n_atoms"]
    assert np.allclose(found["rank_value"].values, np.sort(value[columns["status"] == 0])[:50], rtol=0, atol=1e-14)
    with pytest.raises(ConfigError, match="no standard deviation"):
        chosen(scores, tmp_path, by="volume", uncertainty_weight=1.0)


def test_stores_are_recorded_from_the_place_of_the_selection(graphs: GraphStore, tmp_path: Path) -> None:
    """The scores may have been moved since."""
    for name in ("first", "later", "out"):
        (tmp_path / name).mkdir()
    write_dataset(tmp_path / "first" / "s.zarr", graphs, scored_columns(graphs))
    (tmp_path / "first" / "s.zarr").rename(tmp_path / "later" / "s.zarr")
    shutil.copytree(graphs.path, tmp_path / "later" / "g.zarr")
    given = {"top": 3, "known": tmp_path / "later" / "g.zarr", "store": tmp_path / "later" / "g.zarr"}
    found = select(tmp_path / "later" / "s.zarr", tmp_path / "out" / "best", **given)
    assert GraphStore(tmp_path / "out/best/scores.graphs.zarr").attrs["selected_from"]["path"] == "../../later/g.zarr"
    recipe = found.attrs["selection"]
    paths = [recipe["graph_store"]["path"], recipe["known"]["path"], recipe["criteria"]["known"]]
    assert paths == ["../../later/g.zarr"] * 3


def test_the_recipe_records_the_criteria(scores: Path, tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, "n_atoms < 30", top=3, any_elements="O,S", pareto=["volume", "-max_force"])
    given = {"where": "n_atoms < 30", "top": 3, "any_elements": "O,S", "pareto": ["volume", "-max_force"]}
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe["criteria"] == json.loads(
        json.dumps(SelectionCriteria(**given).record(tmp_path / "out" / "recipe.json"))
    )
    assert recipe["criteria"] == {
        "where": "n_atoms < 30",
        "top": 3,
        "by": None,
        "allowed_elements": [],
        "any_elements": "O,S",
        "excluded_elements": [],
        "pareto": ["volume", "-max_force"],
        "per_system": None,
        "per_prototype": None,
        "uncertainty_weight": 0.0,
        "known": None,
    }
    assert found.attrs["selection"]["ranked_by"].startswith("Pareto fronts of volume, -max_force")
    with pytest.raises(FrozenInstanceError):
        SelectionCriteria().top = 2  # type: ignore[misc]


def test_pareto(scores: Path, columns: dict[str, Any], tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, pareto="energy_above_hull,-volume")
    points = np.stack([columns["energy_above_hull"], -columns["volume"]], axis=1)
    good = np.flatnonzero(columns["status"] == 0)
    beaten = [
        any((points[other] <= points[row]).all() and (points[other] < points[row]).any() for other in good)
        for row in good
    ]
    assert found["scores_row"].values.tolist() == good[~np.array(beaten)].tolist()
    more = chosen(scores, tmp_path, pareto=["energy_above_hull", "-volume"], top=60)
    assert more.sizes["structure"] == 60
    assert (np.diff(more["pareto_front"].values) >= 0).all()
    assert set(ids(found)) <= set(ids(more))
    with pytest.raises(ConfigError, match="two or more"):
        chosen(scores, tmp_path, pareto="volume")


def test_energies_per_atom_rank_one_composition_only(
    graphs: GraphStore, columns: dict[str, Any], tmp_path: Path
) -> None:
    few = {name: values for name, values in columns.items() if "hull" not in name}
    scores = write_dataset(tmp_path / "s.zarr", graphs, few)
    with pytest.raises(ConfigError, match=r"not comparable between compositions.*equiscreen hull.*--by"):
        chosen(scores, tmp_path, top=3)
    with pytest.raises(ConfigError, match=r"has no column to rank by: .* `--by`, for example energy_std, max_force$"):
        chosen(scores, tmp_path, top=3)
    bare = {name: values for name, values in few.items() if not name.startswith("energy")}
    with pytest.raises(ConfigError, match="has no column to rank by: it has no energies; or choose one with `--by`"):
        chosen(write_dataset(tmp_path / "bare.zarr", graphs, bare), tmp_path, top=3)
    assert chosen(scores, tmp_path, top=3, by="energy_per_atom").sizes["structure"] == 3
    formation = few | {"formation_energy_per_atom": -few["energy_per_atom"]}
    found = chosen(write_dataset(tmp_path / "f.zarr", graphs, formation), tmp_path, top=3)
    assert found.attrs["selection"]["ranked_by"] == "formation_energy_per_atom, lowest first"
    one = few | {"formula": ["SiO2"] * SIZE}
    found = chosen(write_dataset(tmp_path / "one.zarr", graphs, one), tmp_path, top=3)
    assert found.attrs["selection"]["ranked_by"] == "energy_per_atom, lowest first"


def test_a_folder_of_results_stands_for_its_dataset(scores: Path, tmp_path: Path) -> None:
    first = select(scores, tmp_path / "best", top=9, formats=["zarr"])
    again = select(tmp_path / "best", tmp_path / "better", top=3, formats=["parquet"])
    assert ids(again) == ids(first)[:3]
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreError, match="none holds no scores dataset"):
        select(tmp_path / "none", tmp_path / "x", top=3)
    select(scores, tmp_path / "table", top=3, formats=["csv"])
    with pytest.raises(StoreError, match=r"table holds no scores dataset .* repeat `select` with `zarr`"):
        select(tmp_path / "table", tmp_path / "x", top=3)
    (tmp_path / "best/scores.zarr/zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"best/scores\.zarr: its zarr\.json is damaged"):
        select(tmp_path / "best", tmp_path / "x", top=3)


def test_a_selection_from_a_campaign_is_the_top_of_its_list(
    graphs: GraphStore, columns: dict[str, Any], tmp_path: Path
) -> None:
    """Without references, `rank` lists by formation energy, although the dataset has energies above hull."""
    folder = tmp_path / "results"
    folder.mkdir()
    formation = columns | {"formation_energy_per_atom": -columns["energy_per_atom"]}
    write_dataset(folder / "hull.zarr", graphs, formation)
    first = select(folder / "hull.zarr", folder / "best", top=9, by="formation_energy_per_atom", formats=["zarr"])
    again = select(folder, tmp_path / "vasp", top=3, formats=["parquet"])
    assert ids(again) == ids(first)[:3]
    assert ids(select(folder, tmp_path / "x", top=3, by="energy_above_hull", formats=["parquet"])) != ids(again)
    shutil.copytree(folder / "best", tmp_path / "other/best")
    write_dataset(tmp_path / "other/hull.zarr", graphs, columns)  # another dataset than that of the list
    found = select(tmp_path / "other", tmp_path / "y", top=3, formats=["parquet"])
    assert found.attrs["selection"]["ranked_by"] == "energy_above_hull, lowest first"


def test_files_hold_the_structures(scores: Path, graphs: GraphStore, tmp_path: Path) -> None:
    found = select(scores, tmp_path / "out", top=25, formats=["cif,extxyz,parquet,zarr"])
    crystals = structures_of(graphs)
    images = ase.io.read(tmp_path / "out" / "candidates.extxyz", index=":")
    table = pq.read_table(tmp_path / "out" / "candidates.parquet")
    texts = sorted((tmp_path / "out" / "cif").iterdir())
    assert len(images) == len(texts) == len(table) == 25
    for place, row in enumerate(found["scores_row"].values.tolist()):
        assert same_crystal(Structure.from_ase(images[place]), crystals[row], tolerance=1e-6)
        assert images[place].info["structure_id"] == ids(found)[place]
        read, _ = structure_from_cif(texts[place].read_text())
        assert len(read) == len(crystals[row])
        assert same_crystal(read, crystals[row], tolerance=1e-6)
        assert f"_equiscreen_structure_id {ids(found)[place]}" in texts[place].read_text()
        assert "_equiscreen_status ok" in texts[place].read_text()
    assert table["structure_id"].to_pylist() == ids(found)
    assert table["status"].to_pylist() == ["ok"] * 25
    assert np.array_equal(np.array(table["stress"].to_pylist()), found["stress"].values)


def test_a_selection_is_a_dataset_with_its_own_graphs(scores: Path, graphs: GraphStore, tmp_path: Path) -> None:
    first = select(scores, tmp_path / "first", top=40, formats="zarr")
    own = GraphStore(tmp_path / "first" / "scores.graphs.zarr")
    assert own.verify() == []
    assert first.attrs["graph_store"] == {"path": own.path.name, "store_hash": own.store_hash}
    block, whole = own.block(0, 40), graphs.block(0, SIZE).take(first["scores_row"].values)
    for name in ("n_atoms", "n_edges", "cell", "atomic_number", "frac_coord", "n_neighbors", "neighbor", "image"):
        assert np.array_equal(getattr(block, name), getattr(whole, name)), name
    second = select(tmp_path / "first" / "scores.zarr", tmp_path / "second", top=10, formats="zarr")
    assert ids(second) == ids(first)[:10]
    shutil.move(tmp_path / "first", tmp_path / "moved")  # the two stores stay beside each other
    third = select(tmp_path / "moved" / "scores.zarr", tmp_path / "third", top=10)
    assert ids(third) == ids(second)
    xr.testing.assert_equal(third.drop_vars("file_name"), second.drop_vars("file_name"))


def test_what_was_selected_can_be_screened_again(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """The graphs of a selection are those that were scored: a second screen predicts the same energies."""
    write_extxyz(tmp_path / "c.extxyz", 30)
    featurize(tmp_path / "c.extxyz", tmp_path / "c.zarr", cutoff=5.0, scheduler="threads")
    screen(tmp_path / "c.zarr", exported("float64"), tmp_path / "s.zarr", scheduler="threads")
    best = select(tmp_path / "s.zarr", tmp_path / "best", top=10, by="max_force", formats="zarr")
    graphs = GraphStore(tmp_path / "best" / "scores.graphs.zarr")
    again = screen(graphs.path, exported("float64"), tmp_path / "again.zarr", scheduler="threads")
    assert ids(again) == ids(best)
    for name in ("energy", "max_force"):  # float64 rounding differs with the structures in a batch
        assert np.allclose(again[name].values, best[name].values, rtol=1e-9, atol=1e-9), name
    assert compare(tmp_path / "best" / "scores.zarr", tmp_path / "again.zarr")["spearman"].values.min() > 1 - 1e-12
    assert "status" in best.coords


NASTY = [
    "../../../etc/passwd",
    "/abs",
    "a/b\\c",
    "",
    ".",
    "..",
    "NaCl",
    "nacl",
    "NaCl",
    "CON",
    "x" * 500,
    "-rf",
    "a b'\"\n;c",
]
NASTY += ["\u00e4\u4e2d", "$(rm)", "_x loop_"]


def test_names_of_files_are_safe_whatever_ids_are(graphs: GraphStore, columns: dict[str, Any], tmp_path: Path) -> None:
    names = [*NASTY, *columns["structure_id"][len(NASTY) :]]
    changed = {**columns, "structure_id": names, "status": np.zeros(SIZE, dtype=np.uint8)}
    changed["energy_above_hull"] = np.arange(float(SIZE))
    nasty = write_dataset(tmp_path / "s.zarr", graphs, changed)
    before = set(tmp_path.rglob("*"))
    found = select(nasty, tmp_path / "out", top=len(NASTY), formats=["cif", "extxyz", "zarr"])
    assert ids(found) == NASTY
    files = [path.name for path in (tmp_path / "out" / "cif").iterdir()]
    assert len({name.lower() for name in files}) == len(NASTY)
    assert all(len(name) < 100 and name.isascii() and not set(name) & set("/\\'\" $;\n") for name in files)
    assert all(path.is_relative_to(tmp_path / "out") for path in set(tmp_path.rglob("*")) - before)
    for path in sorted((tmp_path / "out" / "cif").iterdir()):
        assert len(structure_from_cif(path.read_text())[0]) > 0
    assert len(ase.io.read(tmp_path / "out" / "candidates.extxyz", index=":")) == len(NASTY)


def test_molecules_have_no_cif_and_that_is_told(tmp_path: Path) -> None:
    atoms = [ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]]), ase.Atoms("Cu", cell=np.eye(3) * 2.5, pbc=True)]
    ase.io.write(tmp_path / "m.extxyz", atoms)
    featurize(tmp_path / "m.extxyz", tmp_path / "g.zarr", cutoff=4.0, scheduler="threads")
    store = GraphStore(tmp_path / "g.zarr")
    columns = scored_columns(store)
    columns |= {"status": np.zeros(2, dtype=np.uint8), "energy_above_hull": np.zeros(2)}
    found = select(write_dataset(tmp_path / "s.zarr", store, columns), tmp_path / "out", formats="cif,extxyz,zarr")
    assert len(list((tmp_path / "out" / "cif").iterdir())) == 1
    assert "cif: structures not written: 1" in summary(found, "out")
    assert len(ase.io.read(tmp_path / "out" / "candidates.extxyz", index=":")) == 2


def test_an_output_that_exists_is_left_alone(scores: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError):
            select(scores, tmp_path / "out", top=1, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OutputExistsError, match="local folder"):
        select(scores, "s3://bucket/out", top=1)
    with pytest.raises(OutputExistsError, match="is read by this run"):
        select(scores, scores / "inside", top=1)


def test_an_earlier_selection_is_replaced_when_that_is_said(scores: Path, tmp_path: Path) -> None:
    select(scores, tmp_path / "out", top=3)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        select(scores, tmp_path / "out", top=2)
    with pytest.raises(StoreError, match="nothing was selected"):
        select(scores, tmp_path / "out", "n_atoms < 0", top=2, overwrite=True)
    assert open_scores(tmp_path / "out" / "scores.zarr").sizes["structure"] == 3  # unchanged
    assert select(scores, tmp_path / "out", top=2, overwrite=True).sizes["structure"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_no_hindrance_and_a_living_one_is(scores: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    (partial / "selection" / "cif").mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="not made by equiscreen"):
        select(scores, tmp_path / "out", top=1)
    (partial / "lock").touch()
    with locked(partial / "lock"), pytest.raises(OutputExistsError, match="another run"):
        select(scores, tmp_path / "out", top=1)
    select(scores, tmp_path / "out", top=1)
    assert not partial.exists()


def test_graphs_that_are_gone_or_changed(
    scores: Path, graphs: GraphStore, columns: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    gone = {"graph_store": {"path": str(tmp_path / "gone.zarr"), "store_hash": graphs.store_hash}}
    moved = write_dataset(tmp_path / "s.zarr", graphs, columns, gone)
    with pytest.raises(StoreError, match="--store"):
        select(moved, tmp_path / "out", top=2)
    assert ids(select(moved, tmp_path / "out", top=2, store=graphs.path)) == ids(chosen(scores, tmp_path / "x", top=2))
    other = graphs_of_mp(data, tmp_path, SIZE - 1)
    with pytest.raises(StoreError, match="is not the graph store"):
        select(scores, tmp_path / "out2", top=2, store=other.path)
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"by": "energy_above_hul"}, "did you mean 'energy_above_hull'"),
        ({"by": "formula"}, "expected a numeric column"),
        ({"by": "stress"}, "3 x 3 numbers"),
        ({"top": 0}, "1 or more"),
        ({"formats": ["cif", "xls"]}, "unknown format 'xls'"),
        ({"where": "stress > 0"}, "3 x 3 numbers"),
        ({"where": "__import__('os')"}, "unknown function"),
        ({"uncertainty_weight": -1.0}, "0 or more"),
        ({"pareto": "n_atoms,volume", "uncertainty_weight": 1.0}, "single ranking column"),
    ],
)
def test_mistakes(words: dict[str, Any], says: str, scores: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        select(scores, tmp_path / "out", **words)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told(graphs: GraphStore, columns: dict[str, Any], tmp_path: Path) -> None:
    broken = write_dataset(tmp_path / "s.zarr", graphs, columns)
    for chunk in (broken / "volume" / "c").rglob("*"):
        if chunk.is_file():
            content = bytearray(chunk.read_bytes())
            content[: len(content) // 2] = bytes(len(content) // 2)
            chunk.write_bytes(content)
    with pytest.raises(StoreError, match="'volume' cannot be read"):
        select(broken, tmp_path / "out", "volume > 3")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


WITHOUT = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "e3nn", "onnx", "pymatgen", "smact", "plotly"):
            raise ModuleNotFoundError(f"{{name}} must not be imported here", name=name)

sys.meta_path.insert(0, Forbidden())
from equiscreen.screening import select
from equiscreen.screening.selection.select import summary
from equiscreen.pipeline.errors import ConfigError

print(summary(select({scores!r}, {out!r}, top=3), "out"))
for words in ({{"where": 'charge_neutral == "yes"'}}, {{"formats": "vasp"}}, {{"known": "k.zarr"}}):
    try:
        select({scores!r}, {out!r} + "2", **words)
    except ConfigError as error:
        print(error)
"""


def test_without_the_packages_that_are_no_part_of_the_base(scores: Path, tmp_path: Path) -> None:
    script = WITHOUT.format(scores=str(scores), out=str(tmp_path / "out"))
    (tmp_path / "k.zarr").symlink_to(open_scores(scores).attrs["graph_store"]["path"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    account = next(place for place, line in enumerate(lines) if line.startswith("out: 3 of 150 structures"))
    assert len(lines) == account + 5
    assert all("pip install 'equiscreen[select]'" in line for line in lines[account + 1 :])
    assert not (tmp_path / "out2").exists()


def test_the_command_line(
    scores: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = ["select", str(scores), "--out", str(tmp_path / "out")]
    words += ["--where", "n_atoms <= 12", "--top", "5", "--by", "-volume", "--excluded-elements", "O,F"]
    done = command_line(*words, "--format", "parquet")
    assert done.returncode == 0, done.stderr
    assert "5 of 150 structures, by volume, highest first; skipped: " in done.stdout
    table = [line.split() for line in done.stdout.splitlines()[2:7]]
    assert [row[0] for row in table] == ["1", "2", "3", "4", "5"]
    assert not (tmp_path / "out" / "ranked.csv").exists()
    done = command_line(*words, "--where", "n_atom < 3")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_counts_of_a_selection_without_rows_beyond(scores: Path, tmp_path: Path) -> None:
    found = chosen(scores, tmp_path, top=7, per_system=1)
    counts = Counter(found["chemical_system"].values.tolist())
    assert max(counts.values()) == 1
    assert found.sizes["structure"] == 7
