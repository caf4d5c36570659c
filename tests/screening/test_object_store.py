"""Relaxations, hulls and properties in an object store, made by workers that send their parts to the command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import pytest
import s3fs
from ase.db import connect as database
from distributed import LocalCluster
from equiscreen.pipeline import GraphStore, featurize, merge
from equiscreen.screening import compute_properties, hull, open_scores, relax
from equiscreen.screening.dataset.paths import graphs_path
from equiscreen.screening.properties import finishing, presets
from equiscreen.screening.properties.presets import PRESETS, Preset
from equiscreen.screening.relaxation.batched import RelaxSettings

from ..conftest import CUTOFF, write_extxyz
from ..local_servers import s3_environment, s3_server
from .properties.test_compute import Springs

SETTINGS = RelaxSettings(fmax=1.0, smax=10.0, max_steps=4, trajectory=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3fs.S3FileSystem]:
    with s3_server() as url, pytest.MonkeyPatch.context() as patch, s3_environment(url, patch) as fs:
        fs.mkdir("bucket")
        yield fs


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a running cluster, whose workers count as those of other machines."""
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None, host="127.0.0.1", protocol="tcp") as made:
        yield made.scheduler_address


@pytest.fixture(scope="module")
def sources(bucket: s3fs.S3FileSystem, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Files that workers open, a file that the command divides, and a database that workers download."""
    folder = tmp_path_factory.mktemp("sources")
    images = ase.io.read(write_extxyz(folder / "a.extxyz", 4, seed=61), ":")
    with database(folder / "b.db") as rows:
        for image in images[:2]:
            image.rattle(0.02, seed=1)
            rows.write(image)
    for number, image in enumerate(images[2:]):
        image.rattle(0.02, seed=2)
        ase.io.write(folder / f"c{number}.cif", image)
    bucket.put(str(folder), "bucket/sources", recursive=True)
    return "s3://bucket/sources"


def steps(sources: str, model: Path, folder: str, scheduler: str) -> list[str]:
    """Hashes of the stores of a graph store, its relaxation, hull and properties."""
    graphs, relaxed, ranked, computed = (f"{folder}/{name}.zarr" for name in "grhp")
    featurize(sources, graphs, cutoff=CUTOFF, scheduler=scheduler)
    merge([graphs], f"{folder}/m.zarr", scheduler=scheduler)
    relax(graphs, model, relaxed, SETTINGS, scheduler=scheduler)
    hull(relaxed, (), ranked)
    compute_properties(ranked, model, computed, ["eos"], scheduler=scheduler)
    made = [
        GraphStore(path).store_hash for path in (graphs, f"{folder}/m.zarr", *map(graphs_path, (relaxed, computed)))
    ]
    return made + [str(open_scores(path).attrs["store_hash"]) for path in (relaxed, ranked, computed)]


@pytest.mark.slow
def test_every_step_in_a_bucket_is_as_on_disk(
    bucket: s3fs.S3FileSystem,
    cluster: str,
    sources: str,
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where the working folders are
    model = exported("float64")
    (tmp_path / "here").mkdir()
    expected = steps(sources, model, "here", "threads")
    assert steps(sources, model, "s3://bucket/there", cluster) == expected
    (here,) = (tmp_path / "here" / "r.trajectories").iterdir()
    assert bucket.cat_file(f"bucket/there/r.trajectories/{here.name}") == here.read_bytes()
    assert bucket.find("bucket/there/r.trajectories") == [f"bucket/there/r.trajectories/{here.name}"]
    found = open_scores("s3://bucket/there/p.zarr")
    assert found.attrs["graph_store"]["path"] == "s3://bucket/there/p.graphs.zarr"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_a_last_step_in_a_bucket_reads_no_working_folder(
    bucket: s3fs.S3FileSystem,
    cluster: str,
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source, model, options = write_extxyz(tmp_path / "a.extxyz", 3, seed=62), exported("float64"), {"relax": False}
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    bucket.put(str(tmp_path / "g.zarr"), "bucket/springs.zarr", recursive=True)
    protocol = Preset("springs", replace(PRESETS["default"].relaxation, fmax=1e6, smax=1e9), (Springs(),))
    monkeypatch.setitem(presets.PRESETS, "springs", protocol)
    here = compute_properties(
        "s3://bucket/springs.zarr", model, "p.zarr", ["springs"], preset="springs", scheduler="threads", **options
    )
    read = finishing.read_part

    def read_here(*arguments: Any) -> Mapping[str, Any]:
        assert threading.current_thread() is threading.main_thread()  # the tasks run in another one
        return read(*arguments)

    monkeypatch.setattr(finishing, "read_part", read_here)
    there = compute_properties(
        "s3://bucket/springs.zarr",
        model,
        "s3://bucket/p.zarr",
        ["springs"],
        preset="springs",
        scheduler=cluster,
        **options,
    )
    assert (here["springs_status"] == 0).any()
    assert there.attrs["store_hash"] == here.attrs["store_hash"]
