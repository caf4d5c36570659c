"""The report of a dataset of properties, and of a hull and a selection made from it, draws phonon bands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import xarray as xr
from ase.build import bulk, fcc111
from equiscreen.pipeline import featurize
from equiscreen.screening import compute_properties, hull, open_scores, report, select
from equiscreen.screening.properties import presets
from equiscreen.screening.properties.protocol import IMAGINARY_MODES
from equiscreen.screening.reporting import phonon_bands

pytest.importorskip("phonopy", reason="phonopy is not installed")
pytest.importorskip("seekpath", reason="seekpath is not installed")

pytestmark = pytest.mark.slow  # the phonons of four crystals

NAMES = ("Al", "Cu", "far", "slab", "near")


@pytest.fixture(scope="module")
def properties(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phonons of crystals of an untrained network, most of which are unstable, in small supercells."""
    folder = tmp_path_factory.mktemp("bands")
    alloys = [bulk("CuAl", "cesiumchloride", a=a) for a in (3.2, 3.0)]
    crystals = [bulk("Al"), bulk("Cu"), alloys[0], fcc111("Al", (1, 1, 2), vacuum=5.0), alloys[1]]
    for name, one in zip(NAMES, crystals, strict=True):
        one.info["name"] = name
    ase.io.write(folder / "c.extxyz", crystals, format="extxyz")
    featurize(folder / "c.extxyz", folder / "g.zarr", cutoff=4.5, id_field="name", scheduler="threads")
    small = presets.PRESETS["default"].altered("phonons", min_length=6.0, mesh=15.0, temperatures=(300.0,))
    small = replace(small, relaxation=replace(small.relaxation, fmax=1e6, smax=1e9))  # they count as relaxed
    model, out = exported("float64"), folder / "p.zarr"
    compute_properties(folder / "g.zarr", model, out, ["phonons"], preset=small, relax=False, scheduler="threads")
    return out


def drawn(page: Path) -> dict[str, dict[str, Any]]:
    """Plotly's data of the figures with bands, by the heading above them."""
    text = page.read_text()
    found = re.findall(r"<h3>([^<]*)</h3><div class='figure' id='bands-(\d+)'", text)
    blocks = {name: json.loads(re.search(rf'id="bands-{name}-data">(.*?)</script>', text)[1]) for _, name in found}  # type: ignore[index]
    return {heading: blocks[name] for heading, name in found}


def bands_of(scores: xr.Dataset, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    row = scores["structure_id"].values.tolist().index(name)
    ends = {dim: np.cumsum(scores[f"n_{dim}"].values) for dim in ("band_point", "band_mode")}
    starts = {dim: end[row] - scores[f"n_{dim}"].values[row] for dim, end in ends.items()}
    points, modes = (slice(starts[dim], ends[dim][row]) for dim in ("band_point", "band_mode"))
    frequency = scores["band_frequency"].values[modes]
    return scores["band_distance"].values[points], frequency.reshape(points.stop - points.start, -1)


def test_bands_of_a_hull_are_those_of_its_properties(properties: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.zarr"
    shutil.copytree(properties, out)
    shutil.copytree(properties.with_name("p.graphs.zarr"), tmp_path / "p.graphs.zarr")
    scores = open_scores(out)
    hull(out, out=tmp_path / "h.zarr")
    page = report(tmp_path / "h.zarr")
    figures = drawn(page)
    assert len(figures) == 4  # all crystals, but not the slab
    assert sorted(heading.split()[-1] for heading in figures) == ["Al", "AlCu", "AlCu", "Cu"]
    (copper,) = (one for heading, one in figures.items() if heading.endswith(" Cu"))
    distance, frequency = bands_of(scores, "Cu")
    y = np.array([np.nan if value is None else value for value in copper["data"][0]["y"]], dtype=float)
    assert np.nanmin(y) == pytest.approx(frequency.min(), abs=1e-3)
    assert np.nanmax(y) == pytest.approx(frequency.max(), abs=1e-3)
    assert np.isfinite(y).sum() == frequency.size  # every point once, with ends of segments
    assert copper["layout"]["xaxis"]["ticktext"][0] == "Γ"
    assert copper["layout"]["xaxis"]["range"][1] == pytest.approx(distance.max())
    # Crystals with imaginary modes are among the candidates; their status says so.
    assert IMAGINARY_MODES in scores["phonons_status"].values
    assert "imaginary modes" in page.read_text()
    assert "Of 5 structures, 4 have a score." in page.read_text()
    assert "Predictions against labels" not in page.read_text()  # the graph store has the same energies
    # Without the dataset of properties, the rest of the page is valid.
    shutil.rmtree(out)
    assert drawn(report(tmp_path / "h.zarr", overwrite=True)) == {}


def test_bands_of_a_selection_are_those_of_its_rows(properties: Path, tmp_path: Path) -> None:
    where = 'status != "not_applicable" and n_atoms == 2'
    chosen = select(properties, tmp_path / "best", where, top=1, by="energy_per_atom", formats=("zarr",))
    (name,) = chosen["structure_id"].values.tolist()
    (figure,) = drawn(report(tmp_path / "best", tmp_path / "r.html", by="energy_per_atom")).values()
    y = [value for value in figure["data"][0]["y"] if value is not None]
    assert max(y) == pytest.approx(bands_of(open_scores(properties), name)[1].max(), abs=1e-3)


def test_only_the_best_are_drawn(properties: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phonon_bands, "BEST", 2)
    figures = drawn(report(properties, tmp_path / "r.html", by="energy_per_atom"))
    order = np.argsort(open_scores(properties)["energy_per_atom"].values)
    names = [NAMES[row] for row in order if NAMES[row] != "slab"][:2]
    formulas = {"near": "AlCu", "far": "AlCu"}
    assert [heading.split()[-1] for heading in figures] == [formulas.get(name, name) for name in names]
    monkeypatch.setattr(phonon_bands, "MOST_FREQUENCIES", 10)
    assert drawn(report(properties, tmp_path / "r.html", by="energy_per_atom", overwrite=True)) == {}
