"""A whole campaign in one call: the same numbers as its steps, resumable, and never mixed with another."""

from __future__ import annotations

import csv
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from equiscreen.campaigns import RankSettings, rank
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, SourceError
from equiscreen.screening import RelaxSettings, hull, open_scores, relax

from ..conftest import write_extxyz

CRYSTALS = 4


@pytest.fixture(scope="module")
def candidates(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small crystals of the Materials Project, with their formation energies."""
    with gzip.open(data / "mp/mp_20_val.csv.gz", "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["cif"].count("\n") < 30][:CRYSTALS]
    out = tmp_path_factory.mktemp("candidates") / "mp.csv"
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["material_id", "cif", "formation_energy_per_atom"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return out


def values(path: Path) -> xr.Dataset:
    return open_scores(path).load().drop_attrs()


def test_a_campaign_gives_the_numbers_of_its_steps(candidates: Path, sevennet_model: Path, tmp_path: Path) -> None:
    settings = RelaxSettings(max_steps=3, fmax=1.0, smax=10.0)
    lines: list[str] = []
    arguments = {"model": str(sevennet_model), "relaxation": settings, "scheduler": "threads"}
    found = rank(candidates, tmp_path / "out", note=lines.append, **arguments)
    featurize(candidates, tmp_path / "g.zarr", cutoff=5.0, scheduler="threads")
    relax(tmp_path / "g.zarr", sevennet_model, tmp_path / "r.zarr", settings, scheduler="threads")
    expected = hull(tmp_path / "r.zarr")
    xr.testing.assert_identical(
        values(tmp_path / "out/hull.zarr").drop_vars("source"), expected.load().drop_attrs().drop_vars("source")
    )
    energies = found["formation_energy_per_atom"].values
    assert (np.diff(energies) >= 0).all()
    with candidates.open(newline="") as file:
        known = {row["material_id"]: float(row["formation_energy_per_atom"]) for row in csv.DictReader(file)}
    assert np.abs([known[str(name)] for name in found["structure_id"].values] - energies).max() < 0.15
    assert len(lines) == 3
    assert (tmp_path / "out/report.html").exists()
    assert len(list((tmp_path / "out/best/cif").iterdir())) == CRYSTALS
    again = rank(candidates, tmp_path / "out", **arguments)
    assert again.identical(found)
    with pytest.raises(OutputExistsError, match=r"out: holds a campaign with max_steps 3 instead of 4"):
        rank(candidates, tmp_path / "out", **{**arguments, "relaxation": RelaxSettings(max_steps=4, fmax=1, smax=10)})
    with pytest.raises(OutputExistsError, match=r"relax True instead of False; choose another"):
        rank(candidates, tmp_path / "out", **arguments, relax=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="already exists and is not a campaign"):
        rank(candidates, tmp_path / "mine", **arguments)


def test_a_model_without_a_scheme_is_its_own_zero_of_energy(exported: Callable[[str], Path], tmp_path: Path) -> None:
    found = rank(
        write_extxyz(tmp_path / "m.extxyz", 3),
        tmp_path / "out",
        model=str(exported("float32")),
        relax=False,
        scheduler="threads",
    )
    elements = open_scores(tmp_path / "out/elements.zarr")
    assert set(elements["formula"].values) == {"Al", "Cu", "Au"}
    assert np.isfinite(found["formation_energy_per_atom_unrelaxed"].values).all()


def test_a_campaign_file_repeats_the_campaign(tmp_path: Path) -> None:
    settings = RankSettings.of(sources=["a.cif"], model="7net-0", top=5, relaxation={"fmax": 0.1})
    (tmp_path / "folder").mkdir()
    settings.save(tmp_path / "folder/campaign.yaml")
    again = RankSettings.load(tmp_path / "folder/campaign.yaml")
    assert [Path(source).resolve() for source in again.sources] == [Path("a.cif").resolve()]
    assert again.model_copy(update={"sources": settings.sources}) == settings
    file = tmp_path / "bad.yaml"
    for text, message in (
        ("sources: [a.cif]\nmodle: x\n", "bad.yaml: unknown setting 'modle'; did you mean 'model'"),
        ("model: 7net-0\n", "bad.yaml: sources: field required"),
        ("sources: []\n", "bad.yaml: sources: "),
        ("[1, 2]\n", "not a campaign file"),
        ("sources: [a.cif]\ntop: 0\n", "bad.yaml: top: "),
        ("a: [\n", "cannot be read as YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            RankSettings.load(file)


def test_sources_without_a_structure_are_told(sevennet_model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text("data_x\n_cell_length_a 1\n")
    with pytest.raises(SourceError, match=r"x\.cif"):
        rank(tmp_path / "x.cif", tmp_path / "out", model=str(sevennet_model), scheduler="threads")
    with pytest.raises(SourceError, match=r"y\.cif"):  # other sources are welcome, since nothing was done
        rank(tmp_path / "y.cif", tmp_path / "out", model=str(sevennet_model), scheduler="threads")


@pytest.mark.slow
def test_a_campaign_killed_at_ten_moments_ends_with_the_same_bits(
    candidates: Path, sevennet_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "equiscreen", "rank", str(candidates), "--model", str(sevennet_model), "--out"]
    begin = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    seconds = time.monotonic() - begin
    rng = np.random.default_rng(0)
    for moment in rng.uniform(0, seconds, 10):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    for name in ("relaxed.zarr", "hull.zarr", "best/scores.zarr"):
        xr.testing.assert_identical(values(tmp_path / "whole" / name), values(tmp_path / "killed" / name))


def test_a_campaign_file_replaces_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "a.cif"
    source.write_text("data_a")
    settings = RankSettings.of(sources=[str(source)], model="7net-0", top=5)
    with pytest.raises(OutputExistsError, match="holds something else"):
        settings.save(source, overwrite=False)
    assert source.read_text() == "data_a"
    for _ in range(2):  # the same command resumes
        settings.save(tmp_path / "c.yaml", overwrite=False)
    assert RankSettings.load(tmp_path / "c.yaml").top == 5
