"""The demo as a whole, its acts, and their parts."""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from equiscreen.cli.app import app
from equiscreen.demo.acts import Act
from equiscreen.demo.alloys import METALS, PROTOTYPES, AlloyTask, make_alloy, nearest_contact, prototypes, write_alloys
from equiscreen.demo.job import SkippedAct, run_demo
from equiscreen.demo.published import CRYSTALS, PublishedReport
from equiscreen.demo.trained import TrainedReport
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.errors import OutputExistsError
from equiscreen.screening import open_scores
from typer.testing import CliRunner

from ..conftest import traced_once


@pytest.mark.slow
def test_alloys_are_metals_at_sensible_distances() -> None:
    library = prototypes()
    assert set(library) == PROTOTYPES
    for number, name in enumerate(sorted(library)):
        rng = np.random.default_rng(number)
        atoms = make_alloy(library[name], rng)
        assert set(atoms.get_chemical_symbols()) <= set(METALS)
        assert len(set(atoms.numbers)) == len(set(library[name].numbers))
        assert 0.6 < nearest_contact(atoms) < 1.2
        atoms.calc = EMT()
        assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.slow
def test_alloys_depend_on_their_number_alone(tmp_path: Path) -> None:
    write_alloys(AlloyTask(tmp_path / "all.extxyz", 0, 4, 1, teach=True))
    write_alloys(AlloyTask(tmp_path / "tail.extxyz", 2, 2, 1, teach=True))
    assert (tmp_path / "all.extxyz").read_text().endswith((tmp_path / "tail.extxyz").read_text())


@pytest.fixture
def without_the_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the extra `pretrained` were not installed, and the weights had never been used."""
    monkeypatch.setitem(sys.modules, "sevenn", None)
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("without_the_weights")
@pytest.mark.slow
def test_the_demo_goes_on_without_weights_and_ranks(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with traced_once():
        skipped, report = run_demo(out, n_candidates=60, n_training=60, epochs=2, scheduler="threads")
    assert isinstance(skipped, SkippedAct)
    assert skipped.act == "published"
    assert "pip install 'equiscreen[pretrained]'" in str(skipped)
    assert isinstance(report, TrainedReport)
    assert report.candidates.stored == 67
    assert report.ranking.spearman > 0.3
    text = str(report)
    assert "EMT" in text
    assert "replaces DFT" in text
    assert len(report.ranking.best) == 10
    assert {"training.zarr", "candidates.zarr", "run", "model.onnx", "scores.zarr", "ranking.png", "report.html"} <= {
        p.name for p in (out / "train").iterdir()
    }
    page = (out / "train" / "report.html").read_text()
    assert "<h2>Predictions against labels</h2>" in page
    assert page.count('src="data:image/png;base64,') == 3
    scores = open_scores(out / "train" / "scores.zarr")
    # EMT's energies are in the store, where the model does not see them.
    truth = GraphStore(out / "train" / "candidates.zarr").block(0, 67).structure_labels["energy"]
    assert np.corrcoef(scores["energy"].values, truth)[0, 1] > 0.5
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run_demo(out)


@pytest.mark.usefixtures("without_the_weights")
def test_an_act_that_is_left_out_shows_in_the_exit_code(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "--only", "published", "--out", str(tmp_path / "demo")])
    assert done.exit_code == 1
    assert "skipped" in done.stderr
    assert not done.stdout


def test_the_crystals_of_act_one_are_distinct_and_have_energies_from_dft() -> None:
    crystals = ase.io.read(CRYSTALS, index=":")
    assert len({atoms.info["structure_id"] for atoms in crystals}) == len(crystals) == 75
    assert all(-1 < atoms.info["materials_project_eV_per_atom"] < 0.1 for atoms in crystals)
    metals = {"Al", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn"}
    assert {symbol for atoms in crystals for symbol in atoms.symbols} == metals


@pytest.mark.slow
def test_published_weights_rank_known_crystals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sevenn", reason="the sevenn package contains the weights")
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    notes: list[str] = []
    (report,) = run_demo(tmp_path / "demo", only=Act.PUBLISHED, scheduler="threads", note=notes.append)
    assert isinstance(report, PublishedReport)
    assert report.crystals == 75
    assert report.relaxed >= 74
    assert report.mae < 0.02
    assert report.spearman > 0.97
    # The Materials Project has -0.659 eV/atom for B2 AlNi (mp-1487).
    best = open_scores(tmp_path / "demo/published/results/best/scores.zarr").isel(structure=0)
    assert str(best["structure_id"].values) == "mp-1487"
    assert float(best["formation_energy_per_atom"]) == pytest.approx(-0.66, abs=0.03)
    assert (tmp_path / "demo/published/results/report.html").is_file()
    assert notes[0] == "published: rank"
    assert "  1  AlNi " in str(report)
    assert "equiscreen rank crystals.extxyz --out results" in str(report)


@pytest.mark.parametrize("act", list(Act))
def test_only_a_demo_is_overwritten(tmp_path: Path, act: Act) -> None:
    (tmp_path / act).mkdir()
    (tmp_path / act / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError):
            run_demo(tmp_path, overwrite=overwrite)
    assert (tmp_path / act / "thesis.tex").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [act]
