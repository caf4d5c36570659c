"""Remote scores: written to an object store, and opened from there and from a plain web server."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs
import xarray as xr
from equiscreen.cli.terminal.describe import describe
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import OutputExistsError, StoreError
from equiscreen.screening import labels_and_predictions, open_scores, screen

from ...conftest import CUTOFF, write_extxyz
from ...local_servers import HOST, QuietHandler, s3_environment, s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3fs.S3FileSystem]:
    with s3_server() as url, pytest.MonkeyPatch.context() as patch, s3_environment(url, patch) as fs:
        fs.mkdir("scored")
        yield fs


@pytest.fixture(scope="module")
def screened(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a graph store and its scores."""
    folder = tmp_path_factory.mktemp("screened")
    source = write_extxyz(folder / "c.extxyz", 7, seed=230)
    featurize(source, folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    screen(folder / "g.zarr", exported("float32"), folder / "s.zarr", scheduler="threads")
    return folder


def content(scores: xr.Dataset) -> xr.Dataset:
    """The scores without the attributes that differ between two runs."""
    return scores.load().assign_attrs(timing=None, graph_store=None, seal=None)


@pytest.mark.slow
def test_scores_of_a_bucket_in_a_bucket(
    bucket: s3fs.S3FileSystem,
    screened: Path,
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # the run works in the current folder
    bucket.put(str(screened / "g.zarr"), "scored/g.zarr", recursive=True)
    store, out, model = "s3://scored/g.zarr", "s3://scored/s.zarr", exported("float32")
    found = screen(store, model, out, scheduler="threads")
    assert found.attrs["graph_store"]["path"] == store
    assert content(found).identical(content(open_scores(screened / "s.zarr")))
    assert content(open_scores(out)).identical(content(found))
    assert len(labels_and_predictions(open_scores(out))[0]) == 7
    assert describe(out)["schema"] == "equiscreen-scores/1"
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(OutputExistsError, match=r"s3://scored/s\.zarr already exists"):
        screen(store, model, out, scheduler="threads")
    screen(store, model, out, scheduler="threads", limit=3, overwrite=True)
    grown = screen(store, model, out, scheduler="threads", append=True)
    assert grown.sizes["structure"] == 7
    assert grown["structure_id"].values.tolist() == found["structure_id"].values.tolist()


def test_a_bucket_that_does_not_exist_is_told_before_the_work(
    bucket: s3fs.S3FileSystem,
    screened: Path,
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bucket.exists("scored")
    with pytest.raises(OutputExistsError, match=r"s3://nowhere/s\.zarr cannot be written"):
        screen(screened / "g.zarr", exported("float32"), "s3://nowhere/s.zarr", scheduler="threads")
    assert not list(tmp_path.glob("*.partial"))


def test_scores_are_opened_from_a_plain_web_server(screened: Path) -> None:
    handler = functools.partial(QuietHandler, directory=str(screened))
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://{HOST}:{server.server_port}"
        found = open_scores(f"{url}/s.zarr")
        assert found.load().identical(open_scores(screened / "s.zarr").load())
        assert len(labels_and_predictions(found, store=f"{url}/g.zarr")[0]) == 7
        with pytest.raises(StoreError, match=r"none\.zarr: no such store"):
            open_scores(f"{url}/none.zarr")
        server.shutdown()
        thread.join()
