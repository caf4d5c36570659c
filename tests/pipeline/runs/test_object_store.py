"""Reading sources from an object store and writing stores to it, on a local server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import s3fs
import xarray as xr
from equiscreen.pipeline import GraphStore, featurize, merge
from equiscreen.pipeline.errors import OutputExistsError, SourceError, StoreError
from equiscreen.pipeline.runs.staging import Staging
from equiscreen.pipeline.store.writer import StoreRun

from ...conftest import write_extxyz
from ...local_servers import s3_environment, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    with s3_environment(server, monkeypatch) as fs:
        fs.invalidate_cache()
        if fs.exists("screening"):
            fs.rm("screening", recursive=True)
        fs.mkdir("screening")
        yield fs


def test_from_bucket_to_bucket_is_as_from_disk_to_disk(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the working folder is
    for i in range(3):
        bucket.put(str(write_extxyz(tmp_path / f"{i}.extxyz", 5, seed=i)), f"screening/in/{i}.extxyz")
    featurize([tmp_path / f"{i}.extxyz" for i in range(3)], tmp_path / "local.zarr", cutoff=4.0, scheduler="threads")
    report = featurize("s3://screening/in/*.extxyz", "s3://screening/g.zarr", cutoff=4.0, scheduler="threads")
    assert (report.read, report.stored) == (15, 15)
    assert not list(tmp_path.glob("*.partial"))
    there, here = GraphStore("s3://screening/g.zarr"), GraphStore(tmp_path / "local.zarr")
    assert there.column("source").tolist()[::5] == [f"s3://screening/in/{i}.extxyz" for i in range(3)]
    for name in here.specs.keys() - {"source"}:
        assert np.array_equal(there.column(name), here.column(name), equal_nan=name in {"energy", "forces", "stress"})
    assert there.verify() == []
    assert xr.open_zarr("s3://screening/g.zarr").sizes["structure"] == 15


@pytest.mark.slow
def test_a_store_in_a_bucket_is_kept_replaced_extended_and_merged(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = write_extxyz(tmp_path / "a.extxyz", 4, seed=1), write_extxyz(tmp_path / "b.extxyz", 3, seed=2)
    out = "s3://screening/g.zarr"
    featurize(first, out, cutoff=4.0, scheduler="threads")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        featurize(second, out, cutoff=4.0, scheduler="threads")
    assert featurize(second, out, scheduler="threads", append=True).in_store == 7
    merge([out, out], "s3://screening/m.zarr", scheduler="threads")
    assert len(GraphStore("s3://screening/m.zarr")) == 7
    assert featurize(second, out, cutoff=4.0, scheduler="threads", overwrite=True).in_store == 3
    bucket.pipe_file("screening/thesis.zarr/text", b"mine")
    with pytest.raises(OutputExistsError, match="not an equiscreen store"):
        featurize(second, "s3://screening/thesis.zarr", cutoff=4.0, scheduler="threads", overwrite=True)


@contextmanager
def connection_lost_before_the_root(bucket: s3fs.S3FileSystem) -> Iterator[None]:
    """Make an upload in the block fail before its last file, and check that it reports the error."""
    put = s3fs.S3FileSystem._put_file

    async def interrupted(fs: s3fs.S3FileSystem, path: str, *args: object, **settings: object) -> None:
        if path.endswith("store/zarr.json"):
            raise OSError("the connection is lost")
        await put(fs, path, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_put_file", interrupted)
        s3fs.S3FileSystem.clear_instance_cache()  # cached instances keep the methods they were made with
        with pytest.raises(OutputExistsError, match="the connection is lost"):
            yield
    s3fs.S3FileSystem.clear_instance_cache()
    bucket.invalidate_cache()


def test_an_upload_that_was_interrupted_is_taken_up(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_extxyz(tmp_path / "a.extxyz", 4, seed=1)
    with connection_lost_before_the_root(bucket):
        featurize(source, "s3://screening/g.zarr", cutoff=4.0, scheduler="threads")
    assert len(bucket.find("screening/g.zarr")) > 20
    with pytest.raises(StoreError):
        GraphStore("s3://screening/g.zarr")
    assert featurize(source, "s3://screening/g.zarr", cutoff=4.0, scheduler="threads").stored == 4
    assert len(GraphStore("s3://screening/g.zarr")) == 4


def test_an_append_that_was_interrupted_while_it_was_uploaded_loses_nothing(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, settings = "s3://screening/g.zarr", {"scheduler": "threads"}
    featurize(write_extxyz(tmp_path / "a.extxyz", 4, seed=1), out, cutoff=4.0, **settings)
    more = write_extxyz(tmp_path / "b.extxyz", 3, seed=2)
    with connection_lost_before_the_root(bucket):
        featurize(more, out, append=True, **settings)
    assert featurize(more, out, append=True, **settings).in_store == 7
    assert len(GraphStore(out)) == 7


def test_a_bucket_that_is_not_there_is_one_line(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bucket.exists("screening")
    with pytest.raises(SourceError, match=r"s3://nowhere/x\.csv: no such file"):
        featurize("s3://nowhere/x.csv", tmp_path / "g.zarr", cutoff=4.0, scheduler="threads")
    source = write_extxyz(tmp_path / "a.extxyz", 2)
    with pytest.raises(OutputExistsError, match="cannot be written"):
        featurize(source, "s3://nowhere/g.zarr", cutoff=4.0, scheduler="threads")
    assert not list(tmp_path.glob("*.partial"))


def test_without_credentials_the_command_line_says_what_is_missing(server: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": server, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "equiscreen", "featurize", "s3://screening/x.csv", "--out", "g.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("equiscreen: s3://screening/x.csv cannot be reached")
    assert "AWS_ACCESS_KEY_ID" in line


@pytest.mark.usefixtures("bucket")
def test_a_run_killed_while_it_cleans_up_uploads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_extxyz(tmp_path / "a.extxyz", 3)
    words = {"cutoff": 4.0, "scheduler": "threads", "overwrite": True}

    def killed(staging: Staging) -> None:
        for file in staging.work.rglob("zarr.json"):  # what is deleted first
            file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            featurize(source, "s3://screening/u.zarr", **words)
    report = featurize(source, "s3://screening/u.zarr", **words)
    assert report.stored == len(GraphStore("s3://screening/u.zarr")) == 3
    assert GraphStore("s3://screening/u.zarr").verify() == []
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_two_urls_that_end_alike_do_not_meet(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_extxyz(tmp_path / "a.extxyz", 4, seed=1)
    with connection_lost_before_the_root(bucket):
        featurize(source, "s3://screening/one/g.zarr", cutoff=4.0, scheduler="threads")
    assert featurize(source, "s3://screening/two/g.zarr", cutoff=4.0, scheduler="threads").stored == 4
    with pytest.raises(StoreError):
        GraphStore("s3://screening/one/g.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(StoreRun, "make_parts", None)  # its parts are still there
        assert featurize(source, "s3://screening/one/g.zarr", cutoff=4.0, scheduler="threads").stored == 4
    for name in ("one", "two"):
        assert len(GraphStore(f"s3://screening/{name}/g.zarr")) == 4
    assert not list(tmp_path.glob("*.partial"))
