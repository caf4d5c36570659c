"""Publications: complete, checked when they are opened, without local paths, resumed, in folders and in buckets."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from equiscreen.cli.terminal.about import about
from equiscreen.cli.terminal.describe import describe
from equiscreen.pipeline.errors import OutputExistsError, StoreError
from equiscreen.pipeline.store.tables import DUPLICATES_FILE
from equiscreen.publishing import open_catalogue, publish
from equiscreen.publishing.catalogue import CATALOGUE_FILE, CHECKSUMS_FILE, GRAPHS, PAGE_FILE, RANKING, SCORES
from equiscreen.publishing.crate_metadata import CRATE_FILE
from equiscreen.publishing.publication import MARK_FILE
from equiscreen.publishing.ranked_store import chunk_rows
from equiscreen.publishing.store_files import StoreFiles
from equiscreen.screening import open_scores
from equiscreen.screening.dataset.scores import KINDS

from ..local_servers import HOST, QuietHandler, s3_environment, s3_server
from .datasets import HOSTILE, PRIVATE, write_dataset

COUNT = 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scores"), COUNT)


@pytest.fixture
def published(dataset: Path, tmp_path: Path) -> Path:
    publish(dataset, tmp_path / "public", title="<b>Alloys</b>", report=False)
    return tmp_path / "public"


@pytest.fixture
def address(published: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(published))
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


def test_a_publication_is_read_over_http(dataset: Path, address: str) -> None:
    catalogue = open_catalogue(address)
    scores = open_scores(dataset)
    assert catalogue.content.rows == COUNT
    assert catalogue.scores()["structure_id"].values.tolist() == scores["structure_id"].values.tolist()
    ranking = catalogue.ranking().load()
    assert ranking["rank"].values.tolist() == list(range(1, COUNT + 1))
    for name in ("structure_id", "formula", "max_force"):
        assert ranking[name].values.tolist() == scores[name].values[ranking["scores_row"].values].tolist()
    # Reliable values ascend; unreliable ones come after them, and missing ones last within each.
    reliable = (ranking["status"] == 0).values
    assert not (np.diff(reliable.astype(int)) > 0).any()
    for kind in (reliable, ~reliable):
        values = ranking["energy_above_hull"].values[kind]
        finite = np.isfinite(values)
        assert not (np.diff(finite.astype(int)) > 0).any()
        assert (np.diff(values[finite]) >= 0).all()


def test_a_dataset_on_a_web_server_is_published(published: Path, address: str, tmp_path: Path) -> None:
    (published / SCORES / DUPLICATES_FILE).write_bytes(b"a file that only some stores have")
    publish(f"{address}/{SCORES}", tmp_path / "again", report=False)
    for store in (SCORES, RANKING, GRAPHS):
        files = [path.relative_to(published) for path in (published / store).rglob("*") if path.is_file()]
        again = [path for path in (tmp_path / "again" / store).rglob("*") if path.is_file()]
        assert len(again) == len(files)
        data = [file for file in files if file != Path(store, "zarr.json")]
        assert all((tmp_path / "again" / file).read_bytes() == (published / file).read_bytes() for file in data)
    assert (
        open_catalogue(tmp_path / "again")
        .ranking()
        .drop_attrs()
        .identical(open_catalogue(published).ranking().drop_attrs())
    )
    for name in ("..", "../../x", "..\\x"):
        with pytest.raises(StoreError, match="which equiscreen did not write"):
            StoreFiles(f"{address}/{SCORES}").names({name: None})
    with pytest.raises(StoreError, match=r"none\.zarr: no such store"):
        publish(f"{address}/none.zarr", tmp_path / "none")
    with pytest.raises(OutputExistsError, match=r"scores\.zarr is read by this run"):
        publish(f"{address}/{SCORES}", f"{address}/{SCORES}/public")


def test_all_files_have_their_checksums_and_no_local_paths(published: Path, dataset: Path) -> None:
    listed = dict(line.split("  ", 1)[::-1] for line in (published / CHECKSUMS_FILE).read_text().splitlines())
    files = {path.relative_to(published).as_posix(): path for path in published.rglob("*") if path.is_file()}
    assert listed.keys() == files.keys() - {CATALOGUE_FILE, CHECKSUMS_FILE}
    assert {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in listed} == listed
    text = "".join(path.read_bytes().decode("latin-1") for path in files.values())
    assert "7net-0.onnx" in text
    assert not [word for word in (PRIVATE, "me:secret", str(dataset.parent)) if word in text]
    page = (published / PAGE_FILE).read_text()
    assert "&lt;b&gt;Alloys&lt;/b&gt;" in page
    assert not [one for one in (*HOSTILE[:3:2], "<script", "<img", "<b>") if one in page]


def test_a_publication_is_replaced_only_on_request(dataset: Path, published: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"public is already published; .*--overwrite"):
        publish(dataset, published, report=False)
    found = publish(dataset, published, report=False, graphs=False, overwrite=True)
    assert open_catalogue(published).content.stores.keys() == {SCORES, RANKING}
    assert len([path for path in published.rglob("*") if path.is_file()]) == found.files
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputExistsError, match="already holds other files"):
        publish(dataset, tmp_path / "others", overwrite=True)
    # Scores of the user, as in a folder of results, are not an earlier publication.
    shutil.copytree(dataset, tmp_path / "results" / SCORES)
    with pytest.raises(OutputExistsError, match="results already holds other files"):
        publish(dataset, tmp_path / "results", overwrite=True)
    assert open_scores(tmp_path / "results" / SCORES).sizes["structure"] == COUNT
    with pytest.raises(OutputExistsError, match="is read by this run"):
        publish(dataset, dataset / "public")


def test_an_interrupted_publication_resumes(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "public"
    (place / CHECKSUMS_FILE).mkdir(parents=True)  # so that the run ends when all stores are copied
    with pytest.raises(OutputExistsError, match="cannot be written"):
        publish(dataset, place, report=False)
    with pytest.raises(StoreError, match=r"no catalogue\.json: .* publishing was interrupted"):
        open_catalogue(place)
    with pytest.raises(OutputExistsError, match="unfinished publication of other data"):
        publish(dataset, place, report=False, by="max_force")
    lost = sorted(path for path in place.rglob("c/*") if path.is_file())[:2]
    before = [path.read_bytes() for path in lost]
    lost[0].unlink()
    lost[1].write_bytes(b"")
    (place / CHECKSUMS_FILE).rmdir()
    found = publish(dataset, place, report=False)
    assert found.copied == len(lost) + 3 + 4  # the roots of three stores; two pages, the checksums and the catalogue
    assert [path.read_bytes() for path in lost] == before
    assert open_catalogue(place).content.rows == COUNT
    assert not (place / MARK_FILE).exists()


def test_a_catalogue_older_than_its_data_is_refused(
    dataset: Path,
    published: Path,
    tmp_path: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    (tmp_path / "later").mkdir()
    later = write_dataset(tmp_path / "later", COUNT, seed=1)
    shutil.rmtree(published / SCORES)
    shutil.copytree(later, published / SCORES)
    with pytest.raises(StoreError, match=r"scores\.zarr is missing or has changed since the catalogue"):
        open_catalogue(published)
    done = command_line("serve", published)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "scores.zarr is missing or has changed since the catalogue was written" in done.stderr
    shutil.rmtree(published / SCORES)
    shutil.copytree(dataset, published / SCORES)
    (published / CHECKSUMS_FILE).write_text("")
    with pytest.raises(StoreError, match=r"checksums\.sha256 is missing or has changed since the catalogue"):
        open_catalogue(published)
    (published / CATALOGUE_FILE).write_text("{")
    with pytest.raises(StoreError, match=r"catalogue\.json is damaged"):
        open_catalogue(published)


def test_a_publication_is_a_research_object(published: Path) -> None:
    graph = json.loads((published / CRATE_FILE).read_bytes())["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, list):
            for one in value:
                yield from references(one)
        elif isinstance(value, dict):
            yield value["@id"]

    named = {name for entity in graph for key, value in entity.items() if key != "about" for name in references(value)}
    assert named - entities.keys() == {"https://w3id.org/ro/crate/1.1"}
    parts = {one["@id"] for one in entities["./"]["hasPart"]}
    assert parts | {CRATE_FILE} == {f"{one.name}/" if one.is_dir() else one.name for one in published.iterdir()}
    assert entities["#run"]["name"] == "equiscreen: scores of relaxed structures"
    assert entities["#run"]["description"] == "equiscreen screen c.extxyz --out=s3://***@host/s.zarr"


def test_a_crate_holds_a_publication(
    dataset: Path, published: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = ("crate", dataset, "--out", tmp_path / "c.zip", "--no-report", "--title", "<b>Alloys</b>")
    done = command_line(*words, "--author", "Ada Lovelace")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        assert sorted(archive.namelist()) == sorted(
            path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()
        )
        assert all(archive.read(name) == (published / name).read_bytes() for name in archive.namelist() if "/" in name)
        assert b"Ada Lovelace" in archive.read(CRATE_FILE)
    assert "no licence is stated" in done.stdout
    assert "--license URL" in done.stdout
    assert not list(tmp_path.glob("*.partial"))
    again = command_line(*words)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "already exists" in again.stderr


def test_scores_are_read_without_dask(dataset: Path) -> None:
    """A cluster that an open client is connected to may not see their path."""
    scores = open_scores(dataset)
    assert all(array.chunks is None for array in scores.variables.values())
    assert "dask" in type(scores.chunk()["volume"].data).__module__


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_scores_has_words(dataset: Path, kind: str) -> None:
    assert about(describe(str(dataset)) | {"kind": kind}).startswith(f"{dataset}: {KINDS[kind]}, {COUNT} structures: ")


def test_chunks_of_a_ranked_list_stay_small_and_few() -> None:
    for length in (0, 1, 10**4, 10**6, 10**7, 10**8):
        assert 8_192 <= chunk_rows(length) <= 65_536
    assert 10**6 / chunk_rows(10**6) <= 128


@pytest.mark.slow
def test_a_killed_publication_resumes(dataset: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "equiscreen", "publish", str(dataset), str(tmp_path / "public")]
    run = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while run.poll() is None and not (tmp_path / "public" / MARK_FILE).exists():
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    with pytest.raises(StoreError, match="publishing was interrupted"):
        open_catalogue(tmp_path / "public")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} structures" in done.stdout
    assert open_catalogue(tmp_path / "public").ranking().sizes["structure"] == COUNT


@pytest.mark.slow
def test_a_publication_in_a_bucket_is_that_in_a_folder(
    dataset: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as url, s3_environment(url, monkeypatch) as files:
        files.mkdir("public")
        check_bucket(files, dataset, published)


def check_bucket(files: s3fs.S3FileSystem, dataset: Path, published: Path) -> None:
    place = "s3://public/alloys"
    found = publish(dataset, place, title="<b>Alloys</b>", report=False)
    here = {path.relative_to(published).as_posix(): path for path in published.rglob("*") if path.is_file()}
    there = {name.removeprefix("public/alloys/"): name for name in files.find("public/alloys")}
    assert there.keys() == here.keys()
    assert len(there) == found.files
    assert all(files.cat(there[name]) == here[name].read_bytes() for name in here if "/" in name)
    assert open_catalogue(place).ranking().identical(open_catalogue(published).ranking())
    publish(f"{place}/{SCORES}", "s3://public/again", title="<b>Alloys</b>", report=False)
    again = [name for name in files.find("public/again") if name.endswith("/zarr.json") or "/c/" in name]
    assert all(files.cat(name) == files.cat(name.replace("/again/", "/alloys/")) for name in again if "/c/" in name)
    assert len(again) == len([name for name in here if name.endswith("/zarr.json") or "/c/" in name])
    with pytest.raises(OutputExistsError, match=r"alloys/scores\.zarr is read by this run"):
        publish(f"{place}/{SCORES}", f"{place}/{SCORES}/public")
    with pytest.raises(OutputExistsError, match="already published"):
        publish(dataset, place, report=False)
    publish(dataset, place, report=False, by="max_force", overwrite=True)
    assert open_catalogue(place).content.ranked_by == "max_force, lowest first"
    with pytest.raises(OutputExistsError, match=r"s3://nowhere/x cannot be written"):
        publish(dataset, "s3://nowhere/x", report=False)
