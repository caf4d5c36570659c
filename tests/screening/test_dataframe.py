"""Scores as a table: one row per structure, words for flags, and a column for each component of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from equiscreen.pipeline import featurize
from equiscreen.screening import open_scores, screen, to_dataframe

from ..conftest import CUTOFF, write_extxyz


@pytest.fixture(scope="module")
def scores(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    featurize(write_extxyz(folder / "s.extxyz", 4), folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    screen(folder / "g.zarr", exported("float32"), folder / "s.zarr", scheduler="threads")
    return folder / "s.zarr"


def test_one_row_per_structure_with_units_and_words(scores: Path) -> None:
    dataset = open_scores(scores)
    table = to_dataframe(scores)
    assert table.index.tolist() == dataset["structure_id"].values.tolist()
    assert table["status"].tolist() == ["ok"] * 4
    assert np.array_equal(table["energy"], dataset["energy"])
    assert np.array_equal(table["stress_xz"], dataset["stress"][:, 0, 2])
    assert table.attrs["units"]["stress_xz"] == "eV/angstrom^3"
    assert table["formula"].tolist() == dataset["formula"].values.tolist()
    assert "structure" not in table


def test_arrays_have_short_names_for_the_axes_of_plots(scores: Path) -> None:
    dataset = open_scores(scores)
    for name in dataset.variables:
        assert 0 < len(dataset[name].attrs["long_name"]) < 80, name
    assert dataset["max_force"].attrs["long_name"] == "largest norm of the force on an atom"
