"""The charts of a report as files: sizes, colours, the numbers beside them, and what lies in their place."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from equiscreen.cli.app import app
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import OutputExistsError
from equiscreen.screening import labels_and_predictions, open_scores, report, screen
from equiscreen.screening.dataset.reader import ScoresReader
from equiscreen.screening.reporting.content import read_content
from equiscreen.screening.reporting.hull_diagrams import hull_diagrams
from equiscreen.screening.reporting.printed_figures import BLACK, BLUE, GREY, write_figures
from PIL import Image
from typer.testing import CliRunner

from ...conftest import CUTOFF, write_extxyz
from ...export.runtime.altered_models import altered
from .test_report import table_of

WIDTH = 85 / 25.4 * 300  # pixels
WHITE = "#ffffff"


@pytest.fixture(scope="module")
def scores(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of two models for crystals with labels."""
    folder = tmp_path_factory.mktemp("scores")
    featurize(write_extxyz(folder / "c.extxyz", 14, seed=3), folder / "c.zarr", cutoff=CUTOFF, scheduler="threads")
    models = [altered(exported("float32"), folder / f"m{i}.onnx", factor) for i, factor in enumerate((1.0, 1.1))]
    screen(folder / "c.zarr", models, folder / "s.zarr", scheduler="threads")
    return folder / "s.zarr"


@pytest.fixture(scope="module")
def charts(scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    report(scores, folder / "r.html", charts=folder / "charts")
    return folder / "charts"


def columns(file: Path) -> dict[str, list[str]]:
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_each_chart_is_a_picture_a_drawing_and_a_table(charts: Path) -> None:
    names = {path.stem for path in charts.iterdir()}
    assert names >= {"funnel", "elements", "parity", "calibration", "distribution_energy_per_atom"}
    assert {path.name for path in charts.iterdir()} == {f"{n}{end}" for n in names for end in (".png", ".svg", ".csv")}
    for name in names:
        with Image.open(charts / f"{name}.png") as picture:
            assert abs(picture.width - WIDTH) <= 1
            assert len(picture.convert("L").getcolors(1 << 20)) > 10  # not blank


def test_tables_hold_the_numbers(charts: Path, scores: Path) -> None:
    label, prediction = labels_and_predictions(open_scores(scores))
    table = columns(charts / "parity.csv")
    np.testing.assert_array_equal(np.array(table["label (eV/atom)"], dtype=float), label)
    np.testing.assert_array_equal(np.array(table["prediction (eV/atom)"], dtype=float), prediction)
    counts = columns(charts / "distribution_energy_per_atom.csv")
    assert sum(map(int, counts["structures"])) == 14


def test_colours_are_those_of_the_palette(charts: Path) -> None:
    used = set()
    for file in charts.glob("*.svg"):
        used |= set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", file.read_text()))
    assert used <= {BLUE.lower(), BLACK, GREY, WHITE}


def test_the_same_data_give_the_same_bytes(charts: Path, scores: Path, tmp_path: Path) -> None:
    report(scores, tmp_path / "r.html", charts=tmp_path / "again")
    assert {path.name: path.read_bytes() for path in charts.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


def test_files_in_the_folder_stay_unless_they_are_to_be_replaced(scores: Path, tmp_path: Path) -> None:
    (tmp_path / "parity.svg").write_text("<?xml mine")
    (tmp_path / "thesis.tex").touch()
    words = ["report", str(scores), "--out", str(tmp_path / "r.html"), "--figures", str(tmp_path)]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, OutputExistsError) or refused.exit_code
    assert (tmp_path / "parity.svg").read_text() == "<?xml mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.svg", "thesis.tex"]
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert (tmp_path / "parity.svg").read_text() != "<?xml mine"
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("place", ["file", "file/charts"])
def test_a_file_in_place_of_the_folder_is_named(scores: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OutputExistsError, match=rf"{place} cannot be used as the folder for figures .*; choose another"
    ):
        report(scores, tmp_path / "r.html", charts=tmp_path / place)
    assert not (tmp_path / "r.html").exists()


def test_a_file_or_a_url_in_place_of_the_folder_is_refused(scores: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path / "mine", "s3://bucket/charts"):
        with pytest.raises(OutputExistsError, match=re.escape(str(place))):
            report(scores, tmp_path / "r.html", charts=place)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "r.html").exists()


def test_hulls_of_two_and_three_elements(scores: Path, tmp_path: Path) -> None:
    formulas = ["Al", "Ni", "Ti", "AlNi", "AlNi3", "Al3Ni", "Al3Ti", "TiNi", "TiNi3", "AlNi2Ti"]
    energies = [0.0, 0.0, 0.0, -0.65, -0.4, -0.4, -0.38, -0.36, -0.5, -0.6]
    phases = {"formula": formulas, "formation_energy_per_atom": energies, "id": formulas}
    found = table_of(["AlNi", "Al2Ni", "AlNiTi", "Al2NiTi"], [-0.6, -0.4, -0.45, -0.5])
    content = read_content(ScoresReader(scores), 10)
    paths = write_figures(tmp_path, content, hull_diagrams(found, phases), None, [scores], overwrite=False)
    assert {path.stem for path in paths} >= {"hull_Al-Ni", "hull_Al-Ti-Ni"}
    table = columns(tmp_path / "hull_Al-Ni.csv")
    assert list(table) == ["kind", "phase", "fraction of Ni in Al-Ni", "formation energy (eV/atom)"]
    assert table["kind"].count("candidates") == 2
    assert sum(text.startswith("AlNi;") for text in table["phase"]) == 1
