"""OPTIMADE: all kinds of structures, and downloads from servers that work and that fail."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.errors import InvalidStructureError, OutputExistsError, SourceError
from equiscreen.pipeline.readers.optimade import structure_from_optimade
from equiscreen.pipeline.sources.optimade_client import MAX_WAIT_S, STRUCTURE_FIELDS, _retry_after, fetch, listing_url
from hypothesis import given
from hypothesis import strategies as st

SALT: dict[str, Any] = {
    "lattice_vectors": [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]],
    "dimension_types": [1, 1, 1],
    "nperiodic_dimensions": 3,
    "nsites": 2,
    "cartesian_site_positions": [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]],
    "species_at_sites": ["Na", "Cl"],
    "species": [
        {"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0]},
        {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]},
    ],
    "assemblies": None,
    "structure_features": [],
}


def salt(**changes: Any) -> dict[str, Any]:
    """Attributes of rock salt with changes; None removes a field."""
    return {key: value for key, value in {**SALT, **changes}.items() if value is not None}


def mixed(symbols: list[str], concentration: list[float], **more: Any) -> dict[str, Any]:
    species = {"name": "Na", "chemical_symbols": symbols, "concentration": concentration, **more}
    return salt(species=[species, SALT["species"][1]])


# Structures


def test_a_crystal_is_what_the_fields_say() -> None:
    structure = structure_from_optimade(SALT)
    assert structure.atomic_number.tolist() == [11, 17]
    assert structure.pbc.all()
    np.testing.assert_array_equal(structure.cell, np.eye(3) * 4)
    assert np.allclose(structure.frac_coord, [[0, 0, 0], [0.5, 0.5, 0.5]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "changes",
    [
        {"species": None},
        {"species": json.dumps(SALT["species"])},
        {"species": "null"},
        {"dimension_types": None},
        {"dimension_types": None, "nperiodic_dimensions": None},
        {"nsites": None, "structure_features": None},
        {"cartesian_site_positions": np.array(SALT["cartesian_site_positions"]), "dimension_types": np.ones(3, "i1")},
        {"species_at_sites": np.array(["Na", "Cl"], dtype=object), "species": None},
        {"structure_features": ["disorder"]},  # in a species that no site has
        {"assemblies": []},
    ],
)
def test_what_may_be_missing_changes_nothing(changes: dict[str, Any]) -> None:
    """Includes the forms that these fields take in tables."""
    assert structure_from_optimade(salt(**changes)).content_hash() == structure_from_optimade(SALT).content_hash()


def test_names_of_species_are_no_symbols() -> None:
    """An example from the specification: a species named C may be titanium."""
    trap = [{"name": "C", "chemical_symbols": ["Ti"], "concentration": [1.0]}]
    structure = structure_from_optimade(salt(species_at_sites=["C", "C"], species=trap))
    assert structure.atomic_number.tolist() == [22, 22]


@pytest.mark.parametrize("made", [mixed(["D"], [1.0], mass=[2.014]), salt(species=None, species_at_sites=["D", "H"])])
def test_deuterium_is_no_element_of_a_graph(made: dict[str, Any]) -> None:
    with pytest.raises(InvalidStructureError, match=r"isotope \(atom 0, 'D': write H instead\)"):
        structure_from_optimade(made)


@pytest.mark.parametrize("empty", [[None, None, None], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_is_periodic_along_its_lattice_vectors(axis: int, empty: list[float | None]) -> None:
    lattice = [empty if i == axis else SALT["lattice_vectors"][i] for i in range(3)]
    types = [int(i != axis) for i in range(3)]
    structure = structure_from_optimade(salt(lattice_vectors=lattice, dimension_types=types, nperiodic_dimensions=2))
    assert structure.pbc.tolist() == [bool(kind) for kind in types]
    assert np.allclose(structure.positions, SALT["cartesian_site_positions"], rtol=0, atol=1e-12)
    if empty[0] is None:
        guessed = structure_from_optimade(salt(lattice_vectors=lattice, dimension_types=None, nperiodic_dimensions=2))
        assert guessed.content_hash() == structure.content_hash()


@pytest.mark.parametrize("lattice", [None, [[None] * 3] * 3, SALT["lattice_vectors"]])
@pytest.mark.parametrize("types", [None, [0, 0, 0]])
def test_a_molecule_has_no_cell(lattice: object, types: object) -> None:
    structure = structure_from_optimade(salt(lattice_vectors=lattice, dimension_types=types, nperiodic_dimensions=0))
    assert not structure.pbc.any()
    np.testing.assert_array_equal(structure.positions, SALT["cartesian_site_positions"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (mixed(["Na", "K"], [0.5, 0.5]), r"partial occupancy \(atom 0, 'Na'\)"),
        (mixed(["Na", "K"], [1.0, 1.0]), "partial occupancy"),
        (mixed(["Na", "vacancy"], [0.9, 0.1]), "partial occupancy"),
        (mixed(["Na"], [0.9]), "partial occupancy"),
        (mixed(["Na"], [float("nan")]), "partial occupancy"),
        (mixed([], []), "partial occupancy"),
        (mixed(["vacancy"], [1.0]), r"vacant site \(atom 0\)"),
        (mixed(["X"], [1.0]), r"unknown element \(atom 0, 'X'\)"),
        (mixed(["Na"], [1.0], attached=["H"], nattached=[3]), "atoms without positions"),
        (mixed(["Na"], []), "malformed OPTIMADE structure"),
        (salt(species=[SALT["species"][0]]), r"unknown species \(atom 1, 'Cl'\)"),
        (salt(species=[*SALT["species"], SALT["species"][0]]), "duplicate species"),
        (salt(species="no JSON"), "malformed OPTIMADE structure"),
        (salt(species=None, species_at_sites=["Na", "Xx"]), r"unknown element \(atom 1, 'Xx'\)"),
        (salt(species=None, species_at_sites=["Na", " Fe"]), "unknown element"),  # gemmi reads fluorine
        (salt(species=None, species_at_sites=["Na", "Fe2+"]), "unknown element"),
        (salt(species=None, structure_features=["disorder"]), "partial occupancy"),
        (salt(species=None, structure_features=["site_attachments"]), "atoms without positions"),
        (salt(structure_features=["implicit_atoms"]), "atoms without positions"),
        (salt(structure_features=["assemblies"]), "partial occupancy"),
        (salt(assemblies=[{"sites_in_groups": [[0], [1]], "group_probabilities": [0.3, 0.7]}]), "partial occupancy"),
        (salt(species_at_sites=["Na"]), "coordinates for different numbers of atoms"),
        (salt(species_at_sites=None), "response_fields"),
        (salt(cartesian_site_positions=None), "response_fields"),
        (salt(cartesian_site_positions=[[0, 0], [1, 1], [2, 2]], nsites=3), "shape"),
        (salt(cartesian_site_positions=[[0, 0, 0], [None, 1, 1]]), r"too large \(atom 1\)"),
        (salt(nsites=3), "has length 2, but nsites is 3"),
        (salt(lattice_vectors=None), "periodic, but has no cell"),
        (salt(lattice_vectors=[[4, 0, 0], [0, 4, 0], [None] * 3]), r"periodic, but lacks a lattice vector \(axis 2\)"),
        (salt(lattice_vectors=[[4, 0, 0], [0, 4, 0]]), "shape"),
        (salt(lattice_vectors=[[4, 0, 0], [0, 4, 0], [4, 4, 0]]), "zero volume"),
        (salt(dimension_types=[1, 1]), "must hold three values, each 0 or 1"),
        (salt(dimension_types=[1, 1, 2]), "must hold three values, each 0 or 1"),
        (salt(dimension_types=[1, 1, 0]), "nperiodic_dimensions is 3"),
        (salt(dimension_types=None, nperiodic_dimensions=2), "nperiodic_dimensions is 2"),
        (salt(cartesian_site_positions=[], species_at_sites=[], nsites=0), "no atoms"),
        ({}, "species_at_sites"),
    ],
)
def test_what_cannot_be_a_graph_says_why(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidStructureError, match=message):
        structure_from_optimade(attributes)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["Na", "", "vacancy", "[{}]"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "attached"]), inner),
    max_leaves=12,
)


@given(key=st.sampled_from(sorted(SALT)), junk=JUNK)
def test_junk_in_a_field_never_raises_anything_else(key: str, junk: Any) -> None:
    try:
        structure = structure_from_optimade({**SALT, key: junk})
    except InvalidStructureError:
        return
    assert np.isfinite(structure.positions).all()


@given(seed=st.integers(0, 2**16), pbc=st.tuples(*[st.booleans()] * 3))
def test_files_of_pymatgen_are_read_as_pymatgen_means_them(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    """The writer of pymatgen comes from optimade-python-tools, the reference implementation."""
    pymatgen = pytest.importorskip("pymatgen.core")
    adapter = pytest.importorskip("pymatgen.io.optimade").OptimadeStructureAdapter
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 5 + rng.normal(0, 0.4, (3, 3))
    symbols = rng.choice(["Fe", "O", "Li", "H"], 4).tolist()
    lattice = pymatgen.Lattice(cell, pbc=pbc)
    theirs = pymatgen.Structure(lattice, symbols, rng.random((4, 3)))
    text = json.dumps(adapter.get_optimade_structure(theirs))
    ours = structure_from_optimade(json.loads(text)["attributes"])
    numbers = [site.specie.Z for site in theirs]
    assert (
        ours.content_hash() == Structure.from_cartesian(numbers, theirs.cart_coords, cell, np.array(pbc)).content_hash()
    )


# Downloads


@dataclass
class Database:
    """A server of numbered structures, with faults on some of its pages.

    Attributes:
        size: Number of structures.
        page: Structures per page.
        link: Makes the next link, in one of its two forms, from a URL.
        trouble: Sends a faulty response, given the page number and the count of requests for it; returns false to
            send the correct one.
        asked: Requested paths, in order.
        times: Times of the requests.
        address: Base URL.
        closing: Set when the server shuts down.
    """

    size: int = 7
    page: int = 2
    link: Callable[[str], Any] = str
    trouble: Callable[[BaseHTTPRequestHandler, int, int], bool] = lambda *_: False
    asked: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        self.times.append(time.monotonic())
        query = parse_qs(urlsplit(request.path).query)
        number = int(query.get("page_number", ["0"])[0])
        if not self.trouble(request, number, self.asked.count(request.path)):
            respond(request, 200, self.content(request.path, number))

    def content(self, path: str, number: int) -> dict[str, Any]:
        """A page according to the specification."""
        begin, end = number * self.page, min((number + 1) * self.page, self.size)
        kept = "&".join(item for item in urlsplit(path).query.split("&") if not item.startswith("page_number="))
        following = f"{self.address}/v1/structures?{kept}&page_number={number + 1}"
        return {
            "data": [
                {"type": "structures", "id": f"x-{i}", "attributes": salt(_x_energy=-i / 3)} for i in range(begin, end)
            ],
            "meta": {
                "api_version": "1.2.0",
                "query": {"representation": path},
                "more_data_available": end < self.size,
                "data_returned": self.size,
            },
            "links": {"next": self.link(following) if end < self.size else None, "prev": None},
        }


def respond(request: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> bool:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
    return True


def error_body(status: int, detail: str) -> dict[str, Any]:
    return {"meta": {"api_version": "1.2.0"}, "errors": [{"status": str(status), "title": "Error", "detail": detail}]}


@contextmanager
def serving(database: Database) -> Iterator[str]:
    """Serve a database on this machine for the duration of a block; yields its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # with it, head and body are written 40 ms apart

        def do_GET(self) -> None:
            try:
                database.answer(self)
            except OSError:
                self.close_connection = True  # the client went away

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    database.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield database.address
    finally:
        database.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True, scope="module")
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


def download(database: Database, file: Path, path: str = "", **settings: Any) -> int:
    with serving(database) as address:
        return fetch(address + path, file, **{"timeout": 2.0, "delay": 0.001, **settings})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def undisturbed(_no_proxy: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file downloaded from a server without faults."""
    file = tmp_path_factory.mktemp("undisturbed") / "x.jsonl"
    assert download(Database(), file) == 7
    return file.read_bytes()


@pytest.mark.parametrize(
    "link",
    [
        str,
        lambda url: {"href": url, "meta": {"_x": 1}},
        lambda url: "/v1/structures?" + urlsplit(url).query,
        lambda url: "?" + urlsplit(url).query,
    ],
    ids=["string", "object", "absolute path", "relative"],
)
def test_all_pages_are_followed_whatever_the_form_of_the_link(link: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    reported: list[int] = []
    database = Database(link=link)
    assert download(database, file, progress=reported.append) == 7
    assert sum(reported) == 7
    resources = [json.loads(line) for line in file.read_text().splitlines()]
    assert [resource["id"] for resource in resources] == [f"x-{i}" for i in range(7)]
    assert [resource["attributes"]["_x_energy"] for resource in resources] == [-i / 3 for i in range(7)]
    assert all(len(structure_from_optimade(resource["attributes"])) == 2 for resource in resources)
    assert names(tmp_path) == ["x.jsonl"]
    assert len(database.asked) == 4


@pytest.mark.parametrize("forgotten", [False, True])
def test_only_the_fields_of_a_structure_are_asked_for_on_every_page(forgotten: bool, tmp_path: Path) -> None:
    """Even from servers that drop them from their links (OPTIMADE issue 391)."""
    database = Database(link=lambda url: url.replace("response_fields", "forgotten") if forgotten else url)
    download(database, tmp_path / "x.jsonl", '/v1/structures?filter=elements HAS "Na"&page_limit=2')
    for path in database.asked:
        query = parse_qs(urlsplit(path).query)
        assert query["response_fields"] == [",".join(STRUCTURE_FIELDS)]
        assert query["filter"] == ['elements HAS "Na"']
        assert query["page_limit"] == ["2"]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://x.org/optimade", "/optimade/v1/structures"),
        ("https://x.org/optimade/", "/optimade/v1/structures"),
        ("https://x.org", "/v1/structures"),
        ("https://x.org/optimade/v1", "/optimade/v1/structures"),
        ("https://x.org/optimade/v1.2.0/", "/optimade/v1.2.0/structures"),
        ("https://x.org/optimade/v1/structures", "/optimade/v1/structures"),
        ("https://x.org/optimade/structures/?filter=a%2B1", "/optimade/structures"),
    ],
)
def test_a_base_address_is_completed(url: str, path: str) -> None:
    parts = urlsplit(listing_url(url))
    assert parts.path == path
    assert set(parse_qs(parts.query)["response_fields"][0].split(",")) == set(STRUCTURE_FIELDS)
    assert parts.query.startswith(urlsplit(url).query)
    assert listing_url(listing_url(url)) == listing_url(url)


def test_fields_of_the_user_come_first_and_those_of_structures_too() -> None:
    query = parse_qs(urlsplit(listing_url("http://x.org/v1/structures?response_fields=_x_energy%2Cspecies&a=1")).query)
    names = query["response_fields"][0].split(",")
    assert names[:2] == ["_x_energy", "species"]
    assert sorted(names) == sorted(["_x_energy", *STRUCTURE_FIELDS])
    assert query["a"] == ["1"]


@pytest.mark.parametrize("url", ["ftp://x.org/v1", "file:///etc/passwd", "x.org/v1", "http://", "http://[::1", ""])
def test_only_the_web_is_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not an http or https URL"):
        fetch(url, tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


def test_passwords_are_not_for_addresses(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="remove the user name") as caught:
        fetch("https://me:secret@x.org/v1", tmp_path / "x.jsonl")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_a_limit_gives_the_first_lines(limit: int, undisturbed: bytes, tmp_path: Path) -> None:
    whole = undisturbed.splitlines(keepends=True)
    database = Database()
    assert download(database, tmp_path / "x.jsonl", limit=limit) == min(limit, 7)
    assert (tmp_path / "x.jsonl").read_bytes() == b"".join(whole[:limit])
    assert len(database.asked) == (min(limit, 7) + 1) // 2  # no page more than needed


# Servers that fail


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_recovers_is_waited_for(status: int, undisturbed: bytes, tmp_path: Path) -> None:
    def trouble(request: BaseHTTPRequestHandler, number: int, count: int) -> bool:
        return number == 1 and count <= 2 and respond(request, status, error_body(status, "busy"))

    database = Database(trouble=trouble)
    download(database, tmp_path / "x.jsonl", attempts=3)
    assert (tmp_path / "x.jsonl").read_bytes() == undisturbed
    assert len(database.asked) == 4 + 2


def test_a_server_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    def trouble(request: BaseHTTPRequestHandler, number: int, count: int) -> bool:
        return number == 0 and count == 1 and respond(request, 429, b"", Retry_After="1")

    database = Database(trouble=trouble)
    download(database, tmp_path / "x.jsonl")
    assert database.times[1] - database.times[0] >= 1.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("999999999", MAX_WAIT_S),
        ("Wed, 21 Oct 2099 07:28:00 GMT", MAX_WAIT_S),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("²", 0.0),
    ],
)
def test_waiting_has_a_bound(header: str | None, seconds: float) -> None:
    assert _retry_after(header) == seconds


@pytest.mark.parametrize("page", [0, 2])
def test_a_server_that_stays_down_is_named_with_what_to_do(page: int, tmp_path: Path) -> None:
    def trouble(request: BaseHTTPRequestHandler, number: int, count: int) -> bool:  # noqa: ARG001
        return number == page and respond(request, 503, error_body(503, "down for\nmaintenance"))

    database = Database(trouble=trouble)
    with pytest.raises(SourceError, match=r"503 .*\(down for maintenance\) after 3 attempts") as caught:
        download(database, tmp_path / "x.jsonl", attempts=3)
    message = str(caught.value)
    assert database.address in message
    assert "run the same command again" in message
    assert ("again to resume" in message) == (page == 2)
    assert "\n" not in message
    assert ("4 structures are kept" in message) == (page == 2)
    assert len(database.asked) == page + 3
    assert not (tmp_path / "x.jsonl").exists()
    assert (tmp_path / "x.jsonl.partial").exists() == (page == 2)


def hang(database: Database) -> bool:
    database.closing.wait(20)
    return True


def drip(request: BaseHTTPRequestHandler, database: Database) -> bool:
    """Send a byte now and then, each before the timeout."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    while not database.closing.wait(0.02):
        request.wfile.write(b" ")
    return True


@pytest.mark.parametrize("how", ["silent", "dripping"])
def test_a_server_that_never_answers_is_given_up(how: str, tmp_path: Path) -> None:
    database = Database()
    database.trouble = lambda request, *_: hang(database) if how == "silent" else drip(request, database)
    with pytest.raises(SourceError, match=r"within .* after 2 attempts; run the same command again"):
        download(database, tmp_path / "x.jsonl", timeout=0.05, attempts=2)
    assert len(database.asked) == 2


def test_an_address_where_nobody_listens_is_an_error_of_the_source(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(SourceError, match="refused after 2 attempts"):
            fetch(f"http://127.0.0.1:{port}", tmp_path / "x.jsonl", attempts=2, delay=0.001)


def cut_off(request: BaseHTTPRequestHandler) -> bool:
    """Send half of a response, then close the connection."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"data": [')
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True
    return True


@pytest.mark.parametrize("times", [1, 3])
def test_a_connection_that_breaks_mid_page_is_made_again(times: int, undisturbed: bytes, tmp_path: Path) -> None:
    database = Database(trouble=lambda request, number, count: number == 2 and count <= times and cut_off(request))
    if times == 1:
        download(database, tmp_path / "x.jsonl", attempts=3)
        assert (tmp_path / "x.jsonl").read_bytes() == undisturbed
    else:
        with pytest.raises(SourceError, match="after 3 attempts; run the same command again"):
            download(database, tmp_path / "x.jsonl", attempts=3)


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, b"<!DOCTYPE html>\n<html>Welcome</html>", r"not JSON \('<!DOCTYPE html>"),
        (200, b"\xff\xfe\xfa", "not JSON"),
        (200, b"[" * 100_000, "not JSON"),
        (200, [], "not an OPTIMADE response"),
        (200, {"data": {"id": "x"}, "meta": {}}, "not an OPTIMADE response"),
        (200, {"data": [1], "meta": {}}, "not an OPTIMADE response"),
        (200, {"data": [], "meta": [1]}, "not an OPTIMADE response"),
        (200, {"data": [], "links": {"next": 3}}, "next link is of type int"),
        (200, {"data": [], "meta": {"more_data_available": True}}, "no next link"),
        (200, error_body(200, "no such thing"), r"the server reported: no such thing"),
        (400, error_body(400, "cannot parse the filter"), r"400 Bad Request \(cannot parse the filter\)"),
        (403, {"errors": [{"title": "Forbidden"}]}, r"403 Forbidden \(Forbidden\)"),
        (404, b"<html>lost</html>", "404 Not Found$"),
        (404, b"<html>" + b"x" * 1_000_000, "404 Not Found$"),
        (553, error_body(553, "version 9"), r"553 \(version 9\)"),
        (304, b"", "304 Not Modified"),
    ],
)
def test_no_answer_of_optimade_is_refused_at_once(status: int, content: Any, message: str, tmp_path: Path) -> None:
    database = Database(trouble=lambda request, *_: respond(request, status, content))
    with pytest.raises(SourceError, match=message) as caught:
        download(database, tmp_path / "x.jsonl")
    assert database.address in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(database.asked) == 1
    assert not list(tmp_path.iterdir())


def test_a_page_that_is_not_compressed_as_it_says_is_refused(tmp_path: Path) -> None:
    database = Database(trouble=lambda request, *_: respond(request, 200, b"plain", Content_Encoding="gzip"))
    with pytest.raises(SourceError, match="cannot be decompressed"):
        download(database, tmp_path / "x.jsonl")


def test_a_page_has_a_bound(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the page has more than 1,000 bytes"):
        download(Database(page=50, size=50), tmp_path / "x.jsonl", max_bytes=1000)


@pytest.mark.parametrize("link", ["http://127.0.0.1:1/v1/structures", "http://localhost/x", "//x.org", "file:///x"])
def test_no_link_leads_to_another_server(link: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="links to another server"):
        download(Database(link=lambda _: link), tmp_path / "x.jsonl")
    redirecting = Database(trouble=lambda request, *_: respond(request, 302, b"", Location=link))
    with pytest.raises(SourceError, match="links to another server"):
        download(redirecting, tmp_path / "y.jsonl")


def test_a_redirection_is_followed_and_a_loop_of_them_is_not(tmp_path: Path) -> None:
    def moved(request: BaseHTTPRequestHandler, *_: int) -> bool:
        old = request.path.startswith("/old")
        return old and respond(request, 307, b"", Location=request.path.removeprefix("/old"))

    assert download(Database(trouble=moved), tmp_path / "x.jsonl", "/old") == 7
    loop = Database(trouble=lambda request, *_: respond(request, 301, b"", Location=request.path))
    with pytest.raises(SourceError, match="redirected 10 times"):
        download(loop, tmp_path / "y.jsonl")


def test_a_server_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    circle = Database(size=1000, link=lambda url: url.replace("page_number=3", "page_number=1"))
    with pytest.raises(SourceError, match="leads back"):
        download(circle, tmp_path / "x.jsonl")
    assert len(circle.asked) == 3
    assert not (tmp_path / "x.jsonl").exists()


def test_a_server_that_gives_one_page_for_ever_is_refused(tmp_path: Path) -> None:
    def trouble(request: BaseHTTPRequestHandler, number: int, count: int) -> bool:  # noqa: ARG001
        content = database.content(request.path, 0)
        content["links"]["next"] = f"/v1/structures?page_number={number + 1}"
        return respond(request, 200, content)

    database = Database(trouble=trouble)
    with pytest.raises(SourceError, match="returned the previous page again"):
        download(database, tmp_path / "x.jsonl")


def test_empty_pages_do_not_go_on_for_ever(tmp_path: Path) -> None:
    def trouble(request: BaseHTTPRequestHandler, number: int, count: int) -> bool:  # noqa: ARG001
        return respond(request, 200, {"data": [], "links": {"next": f"/v1/structures?page_number={number + 1}"}})

    with pytest.raises(SourceError, match="empty pages in a row"):
        download(Database(trouble=trouble), tmp_path / "x.jsonl")


# Resuming


@contextmanager
def stopping_at(page: int, database: Database) -> Iterator[str]:
    """Serve a database that fails from some page on, until `trouble` is changed."""
    database.trouble = lambda request, number, _: number >= page and respond(request, 500, b"")
    with serving(database) as address:
        yield address


@pytest.mark.parametrize("page", [0, 1, 2, 3])
@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("torn", [b"", b'{"type":"structures","id":"x-'])
def test_resuming_gives_the_bytes_of_an_undisturbed_run(
    page: int, limit: int | None, torn: bytes, undisturbed: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "x.jsonl"
    partial = tmp_path / "x.jsonl.partial"
    database = Database()
    with stopping_at(page, database) as address:
        with pytest.raises(SourceError, match="run the same command again"):
            fetch(address, file, attempts=1)
        if partial.exists():  # as left by an interruption while writing
            partial.write_bytes(partial.read_bytes() + torn)
        database.trouble = lambda *_: False
        asked = len(database.asked)
        reported: list[int] = []
        count = fetch(address, file, limit=limit, progress=reported.append)
    assert count == sum(reported) == (limit or 7)
    assert file.read_bytes() == b"".join(undisturbed.splitlines(keepends=True)[:limit])
    if limit is None:
        assert len(database.asked) - asked == 4 - page  # nothing is requested twice
    assert names(tmp_path) == ["x.jsonl"]


def test_a_run_killed_between_pages_resumes(undisturbed: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    reached = threading.Event()
    database = Database()

    def trouble(request: BaseHTTPRequestHandler, number: int, count: int) -> bool:  # noqa: ARG001
        if number == 2 and not reached.is_set():
            reached.set()
            return hang(database)
        return False

    database.trouble = trouble
    with serving(database) as address:
        code = "import sys; from pathlib import Path; from equiscreen.pipeline.sources.optimade_client import fetch; "
        code += "fetch(sys.argv[1], Path(sys.argv[2]))"
        process = subprocess.Popen([sys.executable, "-c", code, address, str(file)])
        assert reached.wait(60)
        with pytest.raises(OutputExistsError, match="another run is downloading"):
            fetch(address, file)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not file.exists()
        assert fetch(address, file) == 7
    assert file.read_bytes() == undisturbed


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("page", [1, 2])
def test_an_interrupted_run_leaves_nothing_of_its_limit(
    page: int, limit: int | None, undisturbed: bytes, tmp_path: Path
) -> None:
    """A page of which only some lines were used is requested again."""
    reports: list[int] = []

    def interrupt(count: int) -> None:
        reports.append(count)
        if len(reports) > page:  # the first report counts what was there before
            raise KeyboardInterrupt

    file = tmp_path / "x.jsonl"
    with serving(Database()) as address:
        with pytest.raises(KeyboardInterrupt):
            fetch(address, file, limit=limit, progress=interrupt)
        assert fetch(address, file) == 7
    assert file.read_bytes() == undisturbed


def test_a_partial_file_that_lost_bytes_is_begun_again(undisturbed: bytes, tmp_path: Path) -> None:
    file, database = tmp_path / "x.jsonl", Database()
    with stopping_at(2, database) as address:
        with pytest.raises(SourceError):
            fetch(address, file, attempts=1)
        partial = tmp_path / "x.jsonl.partial"
        partial.write_bytes(partial.read_bytes()[:-1])
        database.trouble = lambda *_: False
        fetch(address, file)
    assert file.read_bytes() == undisturbed


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    file, database = tmp_path / "x.jsonl", Database()
    with stopping_at(2, database) as address:
        with pytest.raises(SourceError):
            fetch(address, file, attempts=1)
        with pytest.raises(OutputExistsError, match="unfinished download of"):
            fetch(f"{address}/v1/structures?filter=nsites=2", file)
        state = tmp_path / "x.jsonl.partial.json"
        state.write_text("{")
        with pytest.raises(OutputExistsError, match="damaged"):
            fetch(address, file)
    file.write_text("mine")
    with pytest.raises(OutputExistsError, match="exists"):
        fetch("http://127.0.0.1:1", file)
    assert file.read_text() == "mine"
    with pytest.raises(OutputExistsError, match="cannot be written"):
        fetch("http://127.0.0.1:1", tmp_path / "missing" / "x.jsonl")


# From a server to a store


def test_a_server_is_a_source_as_any_file_is(tmp_path: Path) -> None:
    with serving(Database()) as address:
        report = featurize(f"optimade:{address}", tmp_path / "g.zarr", cutoff=3.0, scheduler="threads")
    assert (report.read, report.stored, report.duplicate) == (7, 1, 6)  # the same salt seven times
    store = GraphStore(tmp_path / "g.zarr")
    assert store.column("structure_id").tolist() == ["x-0"]
    assert store.column("source").tolist() == [f"optimade:{address}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.zarr"]


def test_a_run_goes_on_with_what_a_server_gave_before_it_failed(tmp_path: Path) -> None:
    broken = Database(
        trouble=lambda request, number, _: number == 2 and respond(request, 501, error_body(501, "tired"))
    )
    with serving(broken) as address:
        words = (f"optimade:{address}", tmp_path / "g.zarr")
        with pytest.raises(SourceError, match="tired"):
            featurize(*words, cutoff=3.0, scheduler="threads")
        broken.trouble = lambda *_: False
        asked = len(broken.asked)
        assert featurize(*words, cutoff=3.0, scheduler="threads").read == 7
    assert len(broken.asked) - asked == 2  # the page that failed, and the last one


def test_a_page_that_gives_its_structures_twice_is_an_error(tmp_path: Path) -> None:
    database = Database()

    def repeated(request: BaseHTTPRequestHandler, number: int, _: int) -> bool:
        body = json.dumps(database.content(request.path, number)).replace('"data": [', '"data": [], "data": [', 1)
        return respond(request, 200, body.encode())

    database.trouble = repeated
    with serving(database) as address, pytest.raises(SourceError, match="it gives a key twice"):
        featurize(f"optimade:{address}", tmp_path / "g.zarr", cutoff=3.0, scheduler="threads")


def test_a_resource_that_gives_a_key_twice_fails_by_itself(tmp_path: Path) -> None:
    database = Database()

    def repeated(request: BaseHTTPRequestHandler, number: int, _: int) -> bool:
        body = json.dumps(database.content(request.path, number)).replace('"nsites": 2', '"nsites": 1, "nsites": 2', 1)
        return number == 1 and respond(request, 200, body.encode())

    database.trouble = repeated
    with serving(database) as address:
        report = featurize(f"optimade:{address}", tmp_path / "g.zarr", cutoff=3.0, scheduler="threads")
    assert (report.read, report.stored, report.duplicate, report.failed) == (7, 1, 5, 1)
    (failure,) = GraphStore(tmp_path / "g.zarr").table("failures.parquet").to_pylist()
    assert failure["structure_id"] == "x-2"
    assert "'nsites' is given twice" in failure["reason"]
