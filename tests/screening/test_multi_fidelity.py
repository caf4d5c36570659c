"""Cascades: they keep what the models predict, the audit gives the recall, and an interruption changes nothing."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, StoreError
from equiscreen.screening import CascadeSettings, cascade, hull, open_scores, report, screen
from equiscreen.screening.dataset.subset import write_graph_subset
from equiscreen.screening.multi_fidelity import clopper_pearson, recall_of, summary
from hypothesis import given
from hypothesis import strategies as st

from ..conftest import write_extxyz
from ..export.runtime.altered_models import altered
from .convex_hull.hull_data import ELEMENTS, graphs_of, rows_of_mp

SIZE = 80
ABOVE = "energy_above_hull_unrelaxed"
# Against references of elements only, crystals lie far below the hull; about half of these are hits.
SETTINGS = CascadeSettings(keep_below=-0.9, target=-1.0, audit=12, seed=3, relax=False)


@pytest.fixture(scope="module")
def graphs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return graphs_of(rows_of_mp(data)[:SIZE], tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def fast(sevennet_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7net-0 with altered weights: a worse model."""
    return altered(sevennet_model, tmp_path_factory.mktemp("fast") / "fast.onnx", 1.01)


def test_a_store_that_is_replaced_is_noticed_before_its_rows_are_kept(tmp_path: Path) -> None:
    for count in (4, 6):
        featurize(write_extxyz(tmp_path / f"{count}.extxyz", count), tmp_path / f"{count}.zarr", scheduler="threads")
    graphs = GraphStore(tmp_path / "4.zarr")
    shutil.rmtree(tmp_path / "4.zarr")
    (tmp_path / "6.zarr").rename(tmp_path / "4.zarr")
    with pytest.raises(StoreError, match="has changed while it was being read"):
        write_graph_subset(tmp_path / "chosen.zarr", graphs, np.arange(2))
    assert not (tmp_path / "chosen.zarr").exists()


Run = Callable[..., xr.Dataset]


@pytest.fixture(scope="module")
def run(graphs: GraphStore, fast: Path, sevennet_model: Path, data: Path) -> Run:
    def go(out: Path, settings: CascadeSettings = SETTINGS, **words: Any) -> xr.Dataset:
        given = {"scheduler": "threads", **words}
        return cascade(graphs.path, fast, sevennet_model, out, data / ELEMENTS, settings, **given)

    return go


@pytest.fixture(scope="module")
def done(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "c"
    run(out)
    return out


@pytest.fixture(scope="module")
def truth(graphs: GraphStore, sevennet_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Energies above hull of all structures by the accurate model."""
    folder = tmp_path_factory.mktemp("truth")
    screen(graphs.path, sevennet_model, folder / "s.zarr", scheduler="threads")
    return hull(folder / "s.zarr", data / ELEMENTS, folder / "h.zarr")[ABOVE].values


def test_kept_and_audited_are_what_the_models_say(done: Path, graphs: GraphStore, truth: Any) -> None:
    found = open_scores(done / "result.zarr")
    by_fast = open_scores(done / "fast.hull.zarr")[ABOVE].values
    about = found.attrs["cascade"]
    assert not np.allclose(by_fast, truth, atol=1e-3)
    kept = np.flatnonzero(by_fast <= SETTINGS.keep_below)
    assert 10 < len(kept) < SIZE - 10
    names = graphs.column("structure_id", 0, SIZE).tolist()
    places = [names.index(name) for name in found["structure_id"].values.tolist()]
    assert places[: len(kept)] == kept.tolist()
    audited = places[len(kept) :]
    assert len(set(audited)) == SETTINGS.audit
    assert (by_fast[audited] > SETTINGS.keep_below).all()
    assert np.allclose(found[ABOVE].values, truth[places], atol=1e-6)
    assert (about["screened"], about["kept"], about["rejected"]) == (SIZE, len(kept), SIZE - len(kept))
    assert about["hits"] == int((truth[kept] <= SETTINGS.target).sum())
    assert about["recall"]["missed"] == int((truth[audited] <= SETTINGS.target).sum())
    assert "(Clopper-Pearson; " in summary(found, done)


@pytest.mark.slow
def test_an_audit_of_everything_gives_the_recall_itself(run: Run, truth: Any, tmp_path: Path) -> None:
    strict = CascadeSettings(keep_below=-1.0, target=-1.0, audit=SIZE, relax=False)
    recall = run(tmp_path / "c", strict).attrs["cascade"]["recall"]
    by_fast = open_scores(tmp_path / "c" / "fast.hull.zarr")[ABOVE].values
    hits = truth <= strict.target
    expected = (hits & (by_fast <= strict.keep_below)).sum() / hits.sum()
    assert recall["value"] == recall["low"] == recall["high"] == expected


def test_steps_that_are_there_are_not_made_again(run: Run, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "c")
    for name in ("accurate.zarr", "result.zarr", "chosen.zarr"):
        shutil.rmtree(tmp_path / "c" / name)
    (tmp_path / "c" / "chosen.partial").mkdir()
    before = (tmp_path / "c" / "fast.zarr" / "zarr.json").stat().st_mtime_ns
    again = run(tmp_path / "c").load()
    whole = open_scores(done / "result.zarr").load()
    assert again.attrs["cascade"] == whole.attrs["cascade"]
    assert all(again[name].equals(whole[name]) for name in whole.variables)
    assert (tmp_path / "c" / "fast.zarr" / "zarr.json").stat().st_mtime_ns == before
    assert run(tmp_path / "c").equals(again)


@pytest.mark.slow
def test_overwriting_replaces_a_cascade_and_nothing_else(run: Run, done: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    shutil.copytree(done, place)
    (place / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match=r"holds thesis\.tex, which is not part of a cascade"):
        run(place, overwrite=True)
    assert open_scores(place / "result.zarr").equals(open_scores(done / "result.zarr"))
    (place / "thesis.tex").rename(place / "fast.onnx")
    with pytest.raises(OutputExistsError, match=r"holds fast\.onnx, which is not part of a cascade"):
        run(place, overwrite=True)
    (place / "fast.onnx").unlink()
    other = CascadeSettings(keep_below=-1.0, target=-1.0, audit=2, relax=False)
    assert run(place, other, overwrite=True).attrs["cascade"]["settings"]["audit"] == 2


def test_a_refused_folder_keeps_the_graphs_beside_it(
    fast: Path, sevennet_model: Path, data: Path, tmp_path: Path
) -> None:
    graphs = tmp_path / "c.candidates.graphs.zarr"
    featurize(write_extxyz(tmp_path / "old.extxyz", 3, seed=1), graphs, cutoff=3.0, scheduler="threads")
    before = GraphStore(graphs).store_hash
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "cascade.json").write_text("{}")
    (tmp_path / "c" / "thesis.tex").touch()
    new = write_extxyz(tmp_path / "new.extxyz", 4, seed=2)
    with pytest.raises(OutputExistsError, match=r"holds thesis\.tex"):
        cascade(new, fast, sevennet_model, tmp_path / "c", data / ELEMENTS, scheduler="threads", overwrite=True)
    assert GraphStore(graphs).store_hash == before


@pytest.mark.slow
def test_relaxed_by_the_verb_killed_and_said_again(
    graphs: GraphStore,
    fast: Path,
    sevennet_model: Path,
    data: Path,
    tmp_path: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words = ["cascade", str(graphs.path), "--fast", str(fast), "--accurate"]
    words += [str(sevennet_model), "--out", str(tmp_path / "c"), "--references", str(data / ELEMENTS), "--audit", "3"]
    words += ["--keep-below=-2.2", "--target=-2.4", "--scheduler", "threads"]
    first = subprocess.Popen([sys.executable, "-m", "equiscreen", *words])
    while first.poll() is None and not any("accurate" in path.name for path in tmp_path.glob("c/*")):
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert not (tmp_path / "c" / "result.zarr").exists()
    second = command_line(*words)
    assert second.returncode == 0, second.stderr
    found = open_scores(tmp_path / "c" / "result.zarr")
    assert found.attrs["kind"] == "relaxed"
    about = found.attrs["cascade"]
    assert found.sizes["structure"] == about["kept"] + 3
    assert int((found["energy_above_hull"][: about["kept"]] <= -2.4).sum()) == about["hits"]
    assert (found["energy"] <= found["initial_energy"] + 1e-6).all()
    assert f"of {SIZE} structures" in second.stdout
    page = report(tmp_path / "c" / "result.zarr").read_text()
    assert "screened by the fast model" in page


def test_other_words_in_the_same_folder_are_refused(run: Run, done: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OutputExistsError, match=r"holds a cascade with keep_below .* instead of -0\.8.*; choose another"
    ):
        run(done, CascadeSettings(keep_below=-0.8, target=-1.0, relax=False))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="is not a cascade"):
        run(tmp_path)


@pytest.mark.slow
def test_structure_files_and_scores_stand_for_a_graph_store(
    exported: Callable[[str], Path], sevennet_model: Path, data: Path, tmp_path: Path
) -> None:
    crystals = write_extxyz(tmp_path / "c.extxyz", 6)
    settings = CascadeSettings(keep_below=1000.0, target=-1.0, audit=1, relax=False)
    models = exported("float32"), sevennet_model  # with cutoffs of 4.5 and 5
    known = tmp_path / "fast.csv"
    known.write_text("formula,energy_per_atom,scheme\nAl,0,own\nCu,0,own\nAu,0,own\n")
    lines: list[str] = []

    def go(source: Path, out: str) -> xr.Dataset:
        return cascade(
            source,
            *models,
            tmp_path / out,
            data / ELEMENTS,
            settings,
            fast_references=known,
            scheduler="threads",
            announce=lines.append,
        )

    of_files = go(crystals, "files")
    graphs = GraphStore(tmp_path / "files.candidates.graphs.zarr")
    assert graphs.cutoff == 5.0
    assert len(lines) == 1
    assert "read 6 = stored 6" in lines[0]
    assert go(crystals, "files").identical(of_files)
    of_scores = go(tmp_path / "files/fast.zarr", "scores")
    assert of_scores["energy"].equals(of_files["energy"])
    assert len(lines) == 2  # of the second call: the store was reused


def test_what_makes_no_sense_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not discard hits"):
        run(tmp_path / "a", CascadeSettings(keep_below=0.0, target=0.1))
    with pytest.raises(StoreError, match="larger --keep-below"):
        run(tmp_path / "b", CascadeSettings(keep_below=-50.0, target=-60.0, relax=False))


@given(trials=st.integers(1, 60), data=st.data())
def test_the_interval_is_that_of_clopper_and_pearson(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = clopper_pearson(successes, trials, 0.9)

    def tail(rate: float, counts: range) -> float:
        return sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in counts)

    # At either end, the probability of a result at least as extreme is what the interval excludes there.
    if successes:
        assert tail(low, range(successes, trials + 1)) == pytest.approx(0.05, rel=1e-6)
    else:
        assert low == 0
    if successes < trials:
        assert tail(high, range(successes + 1)) == pytest.approx(0.05, rel=1e-6)
    else:
        assert high == 1


def test_recall_from_counts() -> None:
    found = recall_of(hits=90, rejected=1_000, audited=100, missed=1)
    assert found.value == pytest.approx(0.9)
    low, high = clopper_pearson(1, 100)
    assert found.low == pytest.approx(90 / (90 + 1_000 * high))
    assert found.high == pytest.approx(90 / (90 + 1_000 * low))
    assert math.isnan(recall_of(0, 10, 10, 0).value)
