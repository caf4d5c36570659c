"""Reading intact and damaged stores, from disk, object stores and web servers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
import zarr
from equiscreen.pipeline import GraphBlock, GraphStore, featurize
from equiscreen.pipeline.errors import StoreError
from hypothesis import given, settings
from hypothesis import strategies as st

from ...conftest import write_extxyz
from ...local_servers import s3_environment, s3_server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    featurize(write_extxyz(folder / "s.extxyz", 30), folder / "g.zarr", cutoff=4.0, scheduler="threads")
    return folder / "g.zarr"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "g.zarr")
    return tmp_path / "g.zarr"


def test_blocks_put_together_are_the_store(store: Path) -> None:
    graphs = GraphStore(store)
    joined = GraphBlock.concatenate(list(graphs.blocks(7)))
    at_once = graphs.block(0, len(graphs))
    for name in ("n_atoms", "cell", "atomic_number", "frac_coord", "n_neighbors", "neighbor", "image"):
        assert np.array_equal(getattr(joined, name), getattr(at_once, name)), name
    assert np.array_equal(joined.structure_labels["energy"], at_once.structure_labels["energy"])
    assert np.array_equal(joined.atom_labels["forces"], at_once.atom_labels["forces"])


def test_take_agrees_with_reading(store: Path) -> None:
    graphs = GraphStore(store)
    taken = graphs.block(0, 30).take([11, 3, 29])
    for place, index in enumerate((11, 3, 29)):
        alone = graphs.block(index, index + 1)
        assert np.array_equal(taken.take([place]).displacements(), alone.displacements())
        assert np.array_equal(taken.take([place]).atom_labels["forces"], alone.atom_labels["forces"])


def shard_of(store: Path, name: str) -> Path:
    return next(p for p in sorted((store / name / "c").rglob("*")) if p.is_file())


@pytest.mark.parametrize("name", ["neighbor", "cell", "atom_start", "status"])
def test_a_missing_shard_is_noticed_at_once(store: Path, name: str) -> None:
    shard_of(store, name).unlink()
    with pytest.raises(StoreError, match=f"damaged: shard 0 of '{name}' is missing"):
        GraphStore(store)


@pytest.mark.parametrize("name", ["neighbor", "frac_coord", "n_atoms"])
def test_a_changed_byte_is_an_error_and_never_a_wrong_number(store: Path, name: str) -> None:
    path = shard_of(store, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        GraphStore(store).block(0, 30)
    assert GraphStore(store).verify() == [name]


def test_verify_finds_nothing_in_a_whole_store(store: Path) -> None:
    assert GraphStore(store).verify() == []


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_root_file_is_told_in_one_line_or_changes_nothing(whole: Path, data: st.DataObject) -> None:
    file, intact = whole / "zarr.json", GraphStore(whole)
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))])
    file.write_bytes(content[:place] + (flipped + content[place + 1 :] if data.draw(st.booleans()) else b""))
    told, found = "", intact
    try:
        found = GraphStore(whole)
    except StoreError as error:
        told = str(error)
    finally:
        file.write_bytes(content)
    if told:
        assert len(told.splitlines()) == 1
        assert told.startswith((f"{whole}: ", f"{whole} "))
    else:
        assert found.specs == intact.specs
        assert all(found.attrs[name] == intact.attrs[name] for name in {*found.attrs} & {*intact.attrs})


def test_attributes_may_be_added_and_not_changed(store: Path) -> None:
    zarr.open_group(store, mode="r+").update_attributes({"doi": "10.1000/1"})
    assert GraphStore(store).attrs["doi"] == "10.1000/1"
    zarr.open_group(store, mode="r+").update_attributes({"cutoff": 4.5})
    with pytest.raises(StoreError, match=r"g\.zarr: its zarr\.json is damaged .*copy the store from its source again"):
        GraphStore(store)


def test_what_is_no_store_says_so(tmp_path: Path, store: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="not a Zarr store"):
        GraphStore(tmp_path / "folder")
    with pytest.raises(StoreError, match="no such store"):
        GraphStore(tmp_path / "nothing.zarr")
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace("equiscreen-graphs/1", "equiscreen-graphs/99"))
    with pytest.raises(StoreError, match="equiscreen-graphs/99"):
        GraphStore(store)
    (store / "zarr.json").write_text(text.replace('"complete": true', '"complete": false'))
    with pytest.raises(StoreError, match="unfinished"):
        GraphStore(store)


def assert_equal_blocks(block: GraphBlock, other: GraphBlock) -> None:
    for name in (
        "n_atoms",
        "n_edges",
        "cell",
        "pbc",
        "atomic_number",
        "frac_coord",
        "n_neighbors",
        "neighbor",
        "image",
    ):
        assert np.array_equal(getattr(block, name), getattr(other, name)), name
    for labels, others in ((block.structure_labels, other.structure_labels), (block.atom_labels, other.atom_labels)):
        assert labels.keys() == others.keys()
        for name, values in labels.items():
            assert np.array_equal(values, others[name], equal_nan=True), name


def test_only_labels_that_are_asked_for_are_read(store: Path) -> None:
    graphs = GraphStore(store)
    block = graphs.block(3, 9, labels=["forces", "gap"])
    assert not block.structure_labels
    assert list(block.atom_labels) == ["forces"]
    assert not graphs.block(3, 9, labels=False).atom_labels


def test_a_store_that_knows_its_offsets_reads_the_same(store: Path) -> None:
    graphs = GraphStore(store)
    looked_up = graphs.block(3, 21)
    atoms, edges = graphs.offsets
    assert (atoms[-1], edges[-1]) == (graphs.n_atoms.sum(), graphs.n_edges.sum())
    assert_equal_blocks(graphs.block(3, 21), looked_up)


def test_offsets_that_disagree_with_the_counts_are_damage(store: Path) -> None:
    array = zarr.open_group(store, mode="r+")["edge_start"]
    assert isinstance(array, zarr.Array)
    array[7:8] = np.array([5])
    graphs = GraphStore(store)
    with pytest.raises(StoreError, match="edge_start"):
        graphs.block(0, 30)
    with pytest.raises(StoreError, match="edge_start"):
        _ = graphs.offsets


def upload(store: Path, files: fsspec.AbstractFileSystem, place: str) -> None:
    for path in store.rglob("*"):
        if path.is_file():
            files.pipe_file(f"{place}/{path.relative_to(store).as_posix()}", path.read_bytes())


def test_a_store_behind_a_url_reads_as_a_local_one(store: Path) -> None:
    files = fsspec.filesystem("memory")
    upload(store, files, "/some/g.zarr")
    graphs = GraphStore("memory://some/g.zarr")
    assert graphs.path == "memory://some/g.zarr"
    assert_equal_blocks(graphs.block(0, 30), GraphStore(store).block(0, 30))
    assert graphs.verify() == []
    shard = shard_of(store, "image").relative_to(store).as_posix()
    content = bytearray(files.cat_file(f"/some/g.zarr/{shard}"))
    content[len(content) // 3] ^= 0x10
    files.pipe_file(f"/some/g.zarr/{shard}", bytes(content))
    with pytest.raises(StoreError, match=r"memory://some/g.zarr: array 'image' cannot be read"):
        GraphStore("memory://some/g.zarr").block(0, 30)
    assert GraphStore("memory://some/g.zarr").verify() == ["image"]
    files.rm(f"/some/g.zarr/{shard}")
    with pytest.raises(StoreError, match="shard 0 of 'image' is missing"):
        GraphStore("memory://some/g.zarr")
    with pytest.raises(StoreError, match="no such store"):
        GraphStore("memory://some/other.zarr")
    with pytest.raises(StoreError, match="cannot be opened"):
        GraphStore("carrier-pigeon://some/g.zarr")


@pytest.fixture
def bucket(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the store in a bucket on a local server, with the environment to reach it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(store.parent / "none"))
    with s3_server() as url, s3_environment(url, monkeypatch) as files:
        files.mkdir("bucket")
        upload(store, files, "bucket/g.zarr")
        yield "s3://bucket/g.zarr"


def test_a_store_in_a_bucket(bucket: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = GraphStore(bucket)
    assert graphs.path == bucket
    assert_equal_blocks(graphs.block(0, 30), GraphStore(store).block(0, 30))
    assert graphs.verify() == []
    for missing in ("s3://bucket/other.zarr", "s3://nobucket/g.zarr"):
        with pytest.raises(StoreError, match=f"^{missing}: no such store"):
            GraphStore(missing)
    s3fs.S3FileSystem().rm(f"{bucket}/{shard_of(store, 'cell').relative_to(store).as_posix()}")
    with pytest.raises(StoreError, match="shard 0 of 'cell' is missing"):
        GraphStore(bucket)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=f"^{bucket} cannot be opened .*redentials") as caught:
        GraphStore(bucket)
    assert "\n" not in str(caught.value)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP, with range requests, as all but the simplest servers, and without listings."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content, status = path.read_bytes(), 200
            wanted = self.headers.get("Range")
            if wanted and send:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin = int(first) if first else len(content) - int(last)
                end = int(last) + 1 if first and last else len(content)
                content, status = content[begin:end], 206
            self.send_response(status)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if send:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_on_a_web_server_without_listings(store: Path) -> None:
    with served(store.parent) as url:
        graphs = GraphStore(f"{url}/g.zarr")
        assert_equal_blocks(graphs.block(0, 30), GraphStore(store).block(0, 30))
        assert graphs.verify() == []
        with pytest.raises(StoreError, match="no such store"):
            GraphStore(f"{url}/other.zarr")
        shard_of(store, "cell").unlink()
        with pytest.raises(StoreError, match="shard 0 of 'cell' is missing"):
            GraphStore(f"{url}/g.zarr")
    with pytest.raises(StoreError, match="cannot be opened"):
        GraphStore(f"{url}/g.zarr")
