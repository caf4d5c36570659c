"""Programs of others read what is published: OPTIMADE clients through optimade-maker, and a validator of RO-Crates.

They live in environments of their own, which `make slow` sets up in build/peers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.publishing import crate, publish
from equiscreen.screening import open_scores, select
from equiscreen.screening.selection.outputs import SCORES_FOLDER

from ..local_servers import HOST
from .datasets import write_dataset

PEERS = Path(__file__).parents[2] / "build" / "peers"
COUNT, CHOSEN, START_S = 40, 20, 120
# Puts the JSON-LD context of RO-Crate 1.1, which the package `rocrate` holds, where roc-validator keeps its downloads.
STORE_CONTEXT = """
import importlib.metadata, io, sys
import requests.adapters, requests_cache, urllib3
url = "https://w3id.org/ro/crate/1.1/context"
class Bundled(requests.adapters.HTTPAdapter):
    def send(self, request, **_):
        file = importlib.metadata.distribution("rocrate").locate_file("rocrate/data/ro-crate.jsonld")
        headers, body = {"content-type": "application/ld+json"}, io.BytesIO(file.read_bytes())
        answer = urllib3.HTTPResponse(body, headers, 200, preload_content=False, request_url=url)
        return self.build_response(request, answer)
with requests_cache.CachedSession(sys.argv[1], backend="sqlite", expire_after=-1) as session:
    session.mount(url, Bundled())
    session.get(url, headers={"accept": "application/ld+json, application/json, */*;q=0.1"}).raise_for_status()
"""
# Recommendations that are not met: addresses of the program and of the publisher, and the affiliation of authors.
UNMET = {
    "process-run-crate-0.5_3.2",
    "process-run-crate-0.5_5.1",
    "ro-crate-1.1_30.2",
    "ro-crate-1.1_30.3",
    "ro-crate-1.1_31.2",
}


def program(peer: str, name: str) -> Path:
    """A program in the environment of a peer."""
    found = PEERS / peer / "bin" / name
    if not found.exists():
        pytest.skip(f"{name} is not installed: make build/peers/{peer}/installed")
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scores"), COUNT)


@pytest.fixture(scope="module")
def selection(dataset: Path) -> Path:
    out = dataset.with_name("best")
    select(dataset, out, top=CHOSEN, formats=("optimade", "zarr"))
    return out


@pytest.fixture(scope="module")
def optimade(selection: Path) -> Iterator[str]:
    """Address of a server that optimade-maker has started."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    words = [program("optimade", "optimake"), "serve", "--port", str(port), selection / "optimade"]
    names = {**os.environ, "OPTIMAKE_PROVIDER_PREFIX": "equiscreen"}
    url = f"http://{HOST}:{port}"
    with subprocess.Popen(words, env=names, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        begin = time.monotonic()
        while True:
            try:
                urllib.request.urlopen(f"{url}/v1/info").close()  # noqa: S310 - a server of this test
                break
            except urllib.error.URLError:
                assert server.poll() is None
                assert time.monotonic() - begin < START_S
                time.sleep(0.2)
        yield url
        server.terminate()


@pytest.mark.slow
def test_an_optimade_client_finds_what_was_selected(selection: Path, optimade: str) -> None:
    scores = open_scores(selection / SCORES_FOLDER)
    wanted = (scores["energy_above_hull"] < 0.05) & scores["formula"].str.contains("Au")
    names = scores["file_name"].values[wanted.values].tolist()
    assert 0 < len(names) < CHOSEN
    condition = '_equiscreen_energy_above_hull < 0.05 AND elements HAS "Au"'
    words = [program("optimade", "optimade-get"), "--silent", "--filter", condition, optimade]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["structures"][condition][optimade]["data"]
    assert sorted(entry["id"] for entry in found) == sorted(names)
    ids = dict(zip(scores["file_name"].values.tolist(), scores["structure_id"].values.tolist(), strict=True))
    assert all(entry["attributes"]["_equiscreen_structure_id"] == ids[entry["id"]] for entry in found)


@pytest.mark.slow
def test_an_optimade_server_of_a_selection_is_valid(optimade: str) -> None:
    done = subprocess.run(
        [program("optimade", "optimade-validator"), optimade], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_selection_is_read_back_from_an_optimade_server(selection: Path, optimade: str, tmp_path: Path) -> None:
    featurize(f"optimade:{optimade}/v1", tmp_path / "g.zarr", cutoff=4.0, scheduler="threads")
    chosen, read = GraphStore(selection / "scores.graphs.zarr"), GraphStore(tmp_path / "g.zarr")
    names = open_scores(selection / SCORES_FOLDER)["file_name"].values.tolist()
    found = {
        name: read.block(row, row + 1).structure(0) for row, name in enumerate(read.column("structure_id").tolist())
    }
    assert found.keys() == set(names)
    for row, name in enumerate(names):
        assert found[name].content_hash() == chosen.block(row, row + 1).structure(0).content_hash()


@pytest.mark.slow
@pytest.mark.parametrize("stated", [True, False])
def test_a_publication_is_a_valid_crate(dataset: Path, tmp_path: Path, stated: bool) -> None:
    credit: dict[str, Any] = {
        "license_url": "https://creativecommons.org/licenses/by/4.0/",
        "authors": ["Ada Lovelace", "\u00c9milie <b>"],
        "publisher": "An institute",
    }
    if stated:
        publish(dataset, tmp_path / "public", **credit)
    else:
        crate(dataset, tmp_path / "public.zip", report=False, graphs=False)
    validator, python = program("crate", "rocrate-validator"), program("crate", "python")
    subprocess.run([python, "-c", STORE_CONTEXT, tmp_path / "cache"], check=True)
    words = [validator, "-y", "validate", "--offline", "--cache-path", tmp_path / "cache", "-f", "json"]
    words += [
        "-o",
        tmp_path / "found.json",
        "-p",
        "process-run-crate-0.5",
        "-l",
        "recommended" if stated else "required",
    ]
    done = subprocess.run(
        [*words, tmp_path / ("public" if stated else "public.zip")], capture_output=True, text=True, check=False
    )
    assert (tmp_path / "found.json").exists(), done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_bytes())
    assert {issue["check"]["identifier"] for issue in found["issues"]} == (UNMET if stated else set())


def test_structures_of_a_selection_are_read_back_from_its_file(selection: Path, tmp_path: Path) -> None:
    made = featurize(selection / "optimade" / "optimade.jsonl", tmp_path / "g.zarr", cutoff=4.0, scheduler="threads")
    assert (made.stored, made.failed) == (CHOSEN, 0)
    chosen, read = GraphStore(selection / "scores.graphs.zarr"), GraphStore(tmp_path / "g.zarr")
    for row in range(CHOSEN):
        one, other = (store.block(row, row + 1).structure(0) for store in (chosen, read))
        assert one.content_hash() == other.content_hash()
    assert read.column("structure_id").tolist() == open_scores(selection / SCORES_FOLDER)["file_name"].values.tolist()
