"""A whole campaign in one call: the same numbers as its steps, resumable, and never mixed with another."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from equiscreen.campaigns import RankSettings, rank
from equiscreen.campaigns.elements import own_elements
from equiscreen.campaigns.estimate import estimate
from equiscreen.export.runtime.onnx_potential import OnnxPotential
from equiscreen.pipeline import Structure, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, SourceError
from equiscreen.pipeline.runs.options import RunOptions
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import RelaxSettings, hull, open_scores, relax
from pymatgen.io.ase import AseAtomsAdaptor

from ..conftest import ELEMENTS, write_extxyz

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
    with pytest.raises(OutputExistsError, match=r"out holds a campaign with max_steps 3 instead of 4"):
        rank(candidates, tmp_path / "out", **{**arguments, "relaxation": RelaxSettings(max_steps=4, fmax=1, smax=10)})
    with pytest.raises(OutputExistsError, match=r"relax True instead of False; choose another .* use `--overwrite`"):
        rank(candidates, tmp_path / "out", **arguments, relax=False)
    other = rank(candidates, tmp_path / "out", **arguments, relax=False, overwrite=True)
    assert "formation_energy_per_atom_unrelaxed" in other
    assert not (tmp_path / "out/relaxed.zarr").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="already exists and is not a campaign"):
        rank(candidates, tmp_path / "mine", **arguments)


@pytest.mark.slow
def test_a_model_without_a_scheme_is_its_own_zero_of_energy(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    model, source = exported("float32"), write_extxyz(tmp_path / "m.extxyz", 3)

    def ranked(name: str) -> tuple[xr.Dataset, str]:
        lines: list[str] = []
        out = tmp_path / name
        found = rank(source, out, model=str(model), relax=False, scheduler="threads", note=lines.append)
        return found.load(), "\n".join(lines)

    found, told = ranked("first")
    (elements,) = (tmp_path / "cache/elements").glob("*/elements.zarr")
    assert f"(needed only once for each model); result: {elements}" in told
    assert f"{elements}: energies of the elements are computed with the model" in told
    rows = open_scores(elements)
    assert set(rows["formula"].values[rows["status"].values == 0]) == {"Al", "Cu", "Au"}
    assert np.isfinite(found["formation_energy_per_atom_unrelaxed"].values).all()
    again, told = ranked("second")
    assert "relaxing crystals" not in told
    xr.testing.assert_identical(again.drop_attrs(), found.drop_attrs())


@pytest.mark.slow
def test_damaged_energies_of_elements_are_made_again(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    model, told = exported("float32"), list[str]()
    given = model, OnnxPotential.load(model), RunOptions(scheduler="threads"), told.append
    elements = own_elements(*given)
    energies = values(elements)["energy"]
    next(path for path in (elements / "energy/c").rglob("*") if path.is_file()).write_bytes(b"damaged")
    assert own_elements(*given) == elements
    assert f"{elements} is damaged; computing it again" in told
    xr.testing.assert_identical(values(elements)["energy"], energies)


def entries_of(compounds: list[Structure], path: Path, *, bare: int = 0) -> Path:
    """File of pymatgen entries with structures, except for the last `bare` ones, and of elements without any."""
    records: list[dict[str, Any]] = [
        {"entry_id": symbol, "composition": {symbol: 1}, "energy": -3.0} for symbol in ("Al", "Cu", "Au")
    ]
    for number, structure in enumerate(compounds):
        crystal = AseAtomsAdaptor.get_structure(structure.to_ase())
        record: dict[str, Any] = {
            "entry_id": f"e{number}",
            "composition": crystal.composition.as_dict(),
            "energy": -3.0 * len(crystal) - number,
        }
        records.append(record | ({"structure": crystal.as_dict()} if number < len(compounds) - bare else {}))
    path.write_text(json.dumps(records))
    return path


@pytest.mark.slow
def test_references_relaxed_with_the_model_give_a_second_hull(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    structures = probe_structures(ELEMENTS, 6, seed=5)
    references = entries_of([*structures, *probe_structures((26,), 1, seed=6)], tmp_path / "entries.json")
    settings = {
        "model": str(exported("float32")),
        "references": [str(references)],
        "scheme": "own",
        "relax_references": True,
        "relaxation": RelaxSettings(max_steps=2, fmax=100.0, smax=1000.0, allow_extrapolation=True),
        "scheduler": "threads",
    }
    source, out, lines = write_extxyz(tmp_path / "m.extxyz", 3), tmp_path / "out", list[str]()
    found = rank(source, out, note=lines.append, **settings).load()
    table = next(line for line in lines if line.startswith(f"{out / 'references.parquet'}: 9 phases"))
    assert "entries, " in table
    assert "9 of 10 kept; 1 outside the chemical systems" in table
    assert any(re.search(r"below the model's own hull of \d+ phases", line) for line in lines)
    column = found["energy_above_model_hull"]
    assert column.attrs["units"] == "eV/atom"
    assert "relaxed with the same model" in column.attrs["long_name"]
    (elements,) = (tmp_path / "cache/elements").glob("*/elements.zarr")
    own = hull(out / "relaxed.zarr", [out / "references.relaxed.zarr", elements], tmp_path / "own.zarr")
    whole = open_scores(out / "hull.zarr")
    np.testing.assert_array_equal(whole["energy_above_model_hull"], own["energy_above_hull"])
    np.testing.assert_array_equal(whole["model_decomposition"], own["decomposition"])
    assert not np.allclose(whole["energy_above_model_hull"], whole["energy_above_hull"], equal_nan=True)
    with (out / "best/ranked.csv").open(newline="") as file:
        assert "energy_above_model_hull" in next(csv.reader(file))
    assert '"heading":"above model hull"' in (out / "report.html").read_text()
    assert rank(source, out, **settings).load().identical(found)


def test_an_estimate_tells_the_cost_of_each_step_and_writes_nothing(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    references = entries_of(probe_structures(ELEMENTS, 3, seed=5), tmp_path / "entries.json")
    source = write_extxyz(tmp_path / "m.extxyz", 3)
    settings = {"model": str(exported("float32")), "references": [str(references)], "scheme": "own"}
    fast = {"relaxation": RelaxSettings(max_steps=2)}
    before = sorted(tmp_path.rglob("*"))
    text = str(estimate(RankSettings.of(sources=[str(source)], relax_references=True, **settings, **fast)))
    steps = [line.partition(":")[0] for line in text.splitlines()]
    assert steps == [
        "graphs",
        "relaxation",
        "references",
        "relaxation of these references",
        "relaxation of the elements, once for each model",
        "hull, selection and report",
    ]
    for line in text.splitlines():
        assert re.search(r"about [\d,]+ s.* MB on disk", line)
    assert "relaxation of these references: 3 structures: about" in text
    text = str(estimate(RankSettings.of(sources=[str(source)], relax=False, **settings)))
    assert [line.partition(":")[0] for line in text.splitlines()] == [
        "graphs",
        "scores",
        "references",
        "hull, selection and report",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_references_that_cannot_be_relaxed_are_named(exported: Callable[[str], Path], tmp_path: Path) -> None:
    references = entries_of(probe_structures(ELEMENTS, 6, seed=5), tmp_path / "entries.json", bare=2)
    settings = {"model": str(exported("float32")), "scheme": "own", "relax_references": True, "scheduler": "threads"}
    source = write_extxyz(tmp_path / "m.extxyz", 3)
    with pytest.raises(
        SourceError, match=r"entries\.json: 2 of these references have no structure \(.* e\d is the first"
    ):
        rank(source, tmp_path / "out", references=[str(references)], **settings)
    assert not (tmp_path / "out/relaxed.zarr").exists()
    with pytest.raises(ConfigError, match="relax_references needs references"):
        rank(source, tmp_path / "out", **settings)


def test_a_campaign_file_repeats_the_campaign(tmp_path: Path) -> None:
    settings = RankSettings.of(sources=["a.cif"], model="7net-0", top=5, relaxation={"fmax": 0.1})
    (tmp_path / "folder").mkdir()
    settings.save(tmp_path / "folder/campaign.yaml")
    again = RankSettings.load(tmp_path / "folder/campaign.yaml")
    assert [Path(source).resolve() for source in again.sources] == [Path("a.cif").resolve()]
    assert again.model_copy(update={"sources": settings.sources}) == settings
    known = RankSettings.of(
        sources=[str(tmp_path / "a.cif"), "https://host/b.cif"],
        references=["mp", str(tmp_path / "c.json"), "optimade:mp"],
    )
    known.save(tmp_path / "folder/campaign.yaml")
    assert str(tmp_path) not in (tmp_path / "folder/campaign.yaml").read_text()
    (tmp_path / "folder").rename(tmp_path / "moved")
    again = RankSettings.load(tmp_path / "moved/campaign.yaml")
    assert [os.path.normpath(one) for one in again.sources[:1]] == [str(tmp_path / "a.cif")]
    assert again.sources[1] == "https://host/b.cif"
    assert (again.references[0], again.references[2]) == ("mp", "optimade:mp")
    assert os.path.normpath(again.references[1]) == str(tmp_path / "c.json")
    (tmp_path / "folder").mkdir()
    file = tmp_path / "bad.yaml"
    for text, message in (
        ("sources: [a.cif]\nmodle: x\n", "bad.yaml: unknown setting 'modle'; did you mean 'model'"),
        ("model: 7net-0\n", "bad.yaml: sources: field required"),
        ("sources: []\n", "bad.yaml: sources: "),
        ("[1, 2]\n", "not a campaign file"),
        ("sources: [a.cif]\ntop: 0\n", "bad.yaml: top: "),
        ("a: [\n", "cannot be read: not valid YAML"),
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
    with pytest.raises(OutputExistsError, match="already exists with different content"):
        settings.save(source, overwrite=False)
    assert source.read_text() == "data_a"
    for _ in range(2):  # the same command resumes
        settings.save(tmp_path / "c.yaml", overwrite=False)
    assert RankSettings.load(tmp_path / "c.yaml").top == 5
