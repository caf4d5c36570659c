"""Rows of equal value are ranked by what they are: another order of the same structures gives the same selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import compare, select
from equiscreen.screening.dataset.reader import ScoresReader
from equiscreen.screening.reporting.content import read_content

from ..conftest import ELEMENTS
from .selection.selection_data import scored_columns as random_columns
from .selection.selection_data import write_dataset

SIZE = 24
ORDERS = [np.arange(SIZE), np.arange(SIZE)[::-1], np.random.default_rng(3).permutation(SIZE)]


def in_order(folder: Path, order: np.ndarray[Any, Any], *, named: bool) -> Path:
    """Scores of the same structures in some order: only four different values of every column."""
    images = [structure.to_ase() for structure in probe_structures(ELEMENTS, SIZE, seed=5)]
    for place, atoms in enumerate(images):
        atoms.info["id"] = f"x{place}"
    ase.io.write(folder / "s.extxyz", [images[place] for place in order], format="extxyz")
    text = (folder / "s.extxyz").read_text()
    (folder / "s.extxyz").write_text(text if named else text.replace(" id=", " place="))
    featurize(folder / "s.extxyz", folder / "g.zarr", scheduler="threads")
    graphs = GraphStore(folder / "g.zarr")
    columns = random_columns(graphs)
    for name in ("energy", "energy_per_atom", "max_force", "energy_above_hull"):
        columns[name] = (order % 4) * 0.01
    columns["energy_above_hull_std"] = (order % 3) * 0.01
    columns["status"][:] = 0
    return write_dataset(folder / "s.zarr", graphs, columns)


@pytest.fixture(scope="module", params=[True, False], ids=["named", "by place"])
def datasets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [in_order(tmp_path_factory.mktemp("order"), order, named=request.param) for order in ORDERS]


def structures_of(scores: Path, rows: np.ndarray[Any, Any]) -> list[bytes]:
    return [structure.content_hash() for structure in ScoresReader(scores).structures(rows)]


@pytest.mark.parametrize(
    "words",
    [
        {"top": 7},
        pytest.param({"top": 7, "by": "-max_force"}, marks=pytest.mark.slow),
        {"top": 5, "per_system": 2},
        pytest.param({"top": 9, "where": "n_atoms > 1"}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
        {"pareto": ["energy_above_hull,energy_above_hull_std"], "top": 7},
    ],
    ids=str,
)
def test_a_selection_does_not_depend_on_the_order_of_rows(
    words: dict[str, Any], datasets: list[Path], tmp_path: Path
) -> None:
    found = []
    for place, scores in enumerate(datasets):
        chosen = select(scores, tmp_path / str(place), formats=["csv"], **words)
        ranks = np.argsort(chosen["rank"].values)
        found.append(structures_of(scores, chosen["scores_row"].values[ranks]))
    assert found[0] == found[1] == found[2]


def test_a_report_shows_the_same_candidates(datasets: list[Path]) -> None:
    found = [structures_of(scores, read_content(ScoresReader(scores), top=6).best) for scores in datasets]
    assert found[0] == found[1] == found[2]


def test_a_comparison_has_the_same_overlap(datasets: list[Path]) -> None:
    if ScoresReader(datasets[0]).rows("structure_id", np.array([0]))[0] != "x0":
        pytest.skip("rows named by their place have no ids to join by")
    found = [compare(scores, datasets[0], columns=["energy_above_hull"], top=5) for scores in datasets]
    for name in ("top_overlap", "mean_difference", "spearman"):
        assert len({float(one[name].values[0]) for one in found}) == 1
    assert float(found[1]["top_overlap"].values[0]) == 1.0
