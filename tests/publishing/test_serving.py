"""The server as a process of its own, with xarray, pandas, pyarrow and plain requests as clients."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import gemmi
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from equiscreen.screening import open_scores
from equiscreen.screening.chemistry.elements import chemical_system

from .datasets import HOSTILE, PRIVATE, write_dataset

COUNT = 200


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("served"), COUNT)


@pytest.fixture(scope="module")
def table(dataset: Path) -> pd.DataFrame:
    """The columns that hold one value per structure."""
    scores = open_scores(dataset)
    names = [name for name, array in scores.variables.items() if array.dims == ("structure",)]
    return pd.DataFrame({name: np.asarray(scores[name], dtype=object) for name in names})


@contextmanager
def served(dataset: Path) -> Iterator[str]:
    """Address of a server in a process of its own, which ends with the block."""
    words = [sys.executable, "-m", "equiscreen", "serve", str(dataset), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line + server.stderr.read()
        yield found[0]
        server.send_signal(signal.SIGINT)
        server.communicate()


@pytest.fixture(scope="module")
def address(dataset: Path) -> Iterator[str]:
    with served(dataset) as found:
        yield found


def get(address: str, path: str, **parameters: object) -> bytes:
    query = f"?{urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(f"{address}{path}{query}") as answer:  # noqa: S310 - a server of this test
        content: bytes = answer.read()
    return content


def rows(address: str, **parameters: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(get(address, "/query", **{"page_size": COUNT, **parameters}))["rows"]
    return found


def refusal(address: str, path: str, **parameters: object) -> tuple[int, str]:
    """Status and text of an answer that is an error."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(address, path, **parameters)
    return refused.value.code, json.loads(refused.value.read())["detail"]


def plain(address: str, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and content for a path that is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_xarray_reads_the_store(address: str, dataset: Path) -> None:
    found = xr.open_zarr(f"{address}/zarr").load()
    here = xr.open_zarr(dataset).load()
    assert found.drop_attrs().identical(here.drop_attrs())
    assert PRIVATE not in str(found.attrs)
    status, content = plain(address, "/zarr/checksums.json", Range="bytes=0-9")
    assert (status, content) == (206, (dataset / "checksums.json").read_bytes()[:10])


def test_queries_find_what_a_table_has(address: str, table: pd.DataFrame) -> None:
    systems = table["formula"].map(chemical_system)
    energies = table["energy_above_hull"].astype(float)
    expected = {
        "where=energy_above_hull < 0.05 and n_atoms > 2": (energies < 0.05) & (table["n_atoms"] > 2),
        'where=status == "extrapolating"': table["status"] == 4,
        "chemical_system=Cu-Al": systems == "Al-Cu",
        "elements=Au": systems.str.contains("Au"),
        "any_elements=Au,Cu": systems.str.contains("Au|Cu"),
        "allowed_elements=Au,Cu": ~systems.str.contains("Al"),
        "excluded_elements=Au": ~systems.str.contains("Au"),
        f"id={HOSTILE[0]}": table["structure_id"] == HOSTILE[0],
        f"formula={table['formula'][7]}": table["formula"] == table["formula"][7],
    }
    for text, wanted in expected.items():
        name, _, value = text.partition("=")
        assert sorted(row["row"] for row in rows(address, **{name: value})) == np.flatnonzero(wanted).tolist(), text
    found = [row["energy_above_hull"] for row in rows(address, where='status == "ok"')]
    assert found[: energies[table["status"] == 0].notna().sum()] == sorted(energies[table["status"] == 0].dropna())
    assert set(found[energies[table["status"] == 0].notna().sum() :]) <= {None}
    forces = [row["max_force"] for row in rows(address, sort="-max_force", where='status == "ok"')]
    assert forces == sorted(forces, reverse=True)
    pages = [row["row"] for page in range(1, 5) for row in rows(address, page=page, page_size=COUNT // 4)]
    assert pages == [row["row"] for row in rows(address)]


def test_pandas_and_arrow_read_the_same_rows(address: str) -> None:
    wanted = pd.DataFrame(rows(address))
    query = urlencode({"page_size": COUNT})
    text = pd.read_csv(f"{address}/query?{query}&format=csv", keep_default_na=False, na_values=[""])
    arrow = pa.ipc.open_stream(io.BytesIO(get(address, "/query", page_size=COUNT, format="arrow"))).read_all()
    for found in (text, arrow.to_pandas()):
        assert found.columns.tolist() == wanted.columns.tolist()
        assert found["structure_id"].tolist() == wanted["structure_id"].tolist()
        assert np.array_equal(found["energy_above_hull"], wanted["energy_above_hull"].astype(float), equal_nan=True)
        assert found["status"].tolist() == wanted["status"].tolist()
    tensor = rows(address, columns="stress", page_size=1)[0]["stress"]
    assert np.shape(tensor) == (3, 3)


def test_structures_are_cifs(address: str, table: pd.DataFrame) -> None:
    for row in (0, 1, COUNT - 1):
        crystal = gemmi.make_small_structure_from_block(
            gemmi.cif.read_string(get(address, f"/structures/{row}.cif").decode()).sole_block()
        )
        assert len(crystal.sites) == table["n_atoms"][row]
    assert refusal(address, f"/structures/{COUNT}.cif") == (400, f"there is no row {COUNT}; the last is {COUNT - 1}")


def test_bad_requests_get_one_line_and_no_paths(address: str, dataset: Path) -> None:
    cases = {
        ("/query", "page_size", 10**9): (422, "less than or equal to 10000"),
        ("/query", "page", 0): (422, "greater than or equal to 1"),
        ("/query", "pagesize", 3): (422, "pagesize: Extra inputs are not permitted"),
        ("/query", "where", "energy_above_hul < 1"): (400, "did you mean 'energy_above_hull'"),
        ("/query", "where", "__import__('os')"): (400, "unknown function"),
        ("/query", "where", "1 < " * 999 + "1"): (422, "at most 1000 characters"),
        ("/query", "elements", "Xx"): (400, "'Xx' is not the symbol of an element"),
        ("/query", "sort", "stress"): (400, "3 x 3 numbers"),
        ("/query", "columns", "nothing"): (400, "unknown column 'nothing'"),
        ("/query", "format", "pickle"): (422, "format"),
        ("/structures/x.cif", "a", "b"): (422, "row"),
    }
    for (path, name, value), (status, text) in cases.items():
        found = refusal(address, path, **{name: value})
        assert found[0] == status, (name, value, found)
        assert text in found[1]
        assert "\n" not in found[1]
        assert str(dataset.parent) not in found[1]
    for path in (
        "/zarr/../g.zarr/zarr.json",
        "/zarr/%2e%2e/g.zarr/zarr.json",
        "/zarr//etc/passwd",
        "/zarr/..%2fc.extxyz",
    ):
        assert plain(address, path)[0] == 404, path
    assert plain(address, "/", Host="elsewhere.example")[0] == 400


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action")]


def test_pages_run_and_load_nothing(address: str) -> None:
    for path in ("/", f"/?id={quote(HOSTILE[0])}", f"/?where={quote(HOSTILE[2])}", "/docs"):
        status, content = plain(address, path)
        assert status in (200, 400)
        page = _Tags()
        page.feed(content.decode())
        assert not page.tags & {"script", "img", "iframe", "link", "object"}
        assert not [one for one in page.addresses if "//" in one or one.startswith("javascript")]
    page_text = get(address, "/", id=HOSTILE[0]).decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page_text
    with urllib.request.urlopen(f"{address}/query") as answer:  # noqa: S310 - a server of this test
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
    paths = json.loads(get(address, "/openapi.json"))["paths"]
    assert {one["name"] for one in paths["/query"]["get"]["parameters"]} >= {"where", "elements", "page_size", "format"}


def test_a_server_that_cannot_start_says_why(
    address: str, dataset: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    port = address.rsplit(":", 1)[1]
    for words, text in (
        (("serve", dataset, "--port", port), "choose another `--port`"),
        (("serve", tmp_path / "none.zarr"), "no such store"),
    ):
        done = command_line(*words)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert text in done.stderr


@pytest.mark.slow
def test_fifty_clients_at_once_get_what_one_gets(address: str) -> None:
    requests = [
        ("/query", {"page_size": COUNT}),
        ("/query", {"elements": "Au", "format": "csv"}),
        ("/query", {"where": "n_atoms > 2", "sort": "-max_force"}),
        ("/structures/3.cif", {}),
        ("/zarr/energy_per_atom/c/0", {}),
    ]
    alone = [get(address, path, **parameters) for path, parameters in requests]

    def client(number: int) -> bool:
        order = [(number + step) % len(requests) for step in range(4 * len(requests))]
        return all(get(address, requests[one][0], **requests[one][1]) == alone[one] for one in order)

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(client, range(50))) == [True] * 50


@pytest.mark.slow
def test_a_replaced_dataset_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 10)
    with served(dataset) as address:
        assert len(rows(address)) == 10
        (dataset / "zarr.json").write_bytes((dataset / "zarr.json").read_bytes() + b"\n")
        assert refusal(address, "/query")[0] == 503
