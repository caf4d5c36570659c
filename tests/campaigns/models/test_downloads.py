"""Downloads from a real HTTP server on the loopback interface: cut, wrong, absent, resumed, too large."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from equiscreen.campaigns.models import downloads
from equiscreen.campaigns.models.downloads import fetch
from equiscreen.pipeline.errors import ModelFileError, UnreachableError

CONTENT = random.Random(5).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT, and obeys the attributes that a test sets.

    Attributes:
        cuts: For each of the next requests, after how many bytes its connection ends.
        ranges: Whether the server understands ranges.
        content: Content that the server sends.
        status: Status of its answers, if not that of success.
        location: Address that it redirects to.
        asked: Range of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges = True
        self.content = CONTENT
        self.status = 0
        self.location = ""
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        body = server.content[start:]
        self.send_response(server.status or (302 if server.location else 206 if start else 200))
        if server.location:
            self.send_header("Location", server.location)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_connection_that_is_cut_is_resumed_where_it_ended(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cuts = [100_000, 1]
    target = fetch(server.url, tmp_path / "new" / "w.bin", SHA256, progress=True)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=100001-"]
    assert not list(target.parent.glob(".*.part"))
    assert fetch(server.url, target, SHA256) == target
    assert len(server.asked) == 3
    assert capsys.readouterr().out == ""


def test_a_later_process_resumes(server: Server, tmp_path: Path) -> None:
    server.cuts = [5_000, 0, 0, 0, 0]
    with pytest.raises(UnreachableError, match=rf"{server.url} cannot be fetched .* put it at {tmp_path}/w.bin"):
        fetch(server.url, tmp_path / "w.bin", SHA256)
    assert visible(tmp_path) == []
    server.cuts, server.asked = [], []
    fetch(server.url, tmp_path / "w.bin", SHA256)
    assert server.asked == ["bytes=5000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_damaged_or_useless_beginning_does_no_harm(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    (tmp_path / f".w.bin.{SHA256[:12]}.part").write_bytes(b"damaged" * 1000)
    assert fetch(server.url, tmp_path / "w.bin", SHA256).read_bytes() == CONTENT


def test_a_whole_file_from_a_killed_process_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / f".w.bin.{SHA256[:12]}.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "w.bin", SHA256).read_bytes() == CONTENT
    assert server.asked == []


def test_a_file_with_another_hash_is_not_used(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(ModelFileError, match=rf"has the SHA-256 [0-9a-f]{{64}} instead of {SHA256}"):
        fetch(server.url, tmp_path / "w.bin", SHA256)
    assert visible(tmp_path) == []


def test_a_wrong_file_in_the_cache_is_told_and_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"something else")
    told: list[str] = []
    assert fetch(server.url, tmp_path / "w.bin", SHA256, note=told.append).read_bytes() == CONTENT
    assert "not the published file" in told[0]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_names_the_address_and_the_place_for_the_file(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(UnreachableError, match=rf"{server.url}.*HTTP {status}.*put it at {tmp_path}/w.bin"):
        fetch(server.url, tmp_path / "w.bin", SHA256)
    assert visible(tmp_path) == []


@pytest.mark.usefixtures("server")
def test_no_server_is_told_in_one_line(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/w.bin"  # the port of `discard`, where nobody listens
    with pytest.raises(UnreachableError, match=f"{url} cannot be fetched") as told:
        fetch(url, tmp_path / "w.bin", SHA256)
    assert "\n" not in str(told.value)


def test_a_file_larger_than_any_model_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MAX_BYTES", 200_000)
    with pytest.raises(ModelFileError, match="larger than"):
        fetch(server.url, tmp_path / "w.bin", SHA256)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("of", [lambda _: "http://example.org/w", lambda _: "file:///etc/passwd", lambda url: url])
def test_only_https_or_this_machine(server: Server, tmp_path: Path, of: Callable[[str], str]) -> None:
    """A redirect to another scheme is rejected too."""
    server.location = "http://example.org/w"
    with pytest.raises(ModelFileError, match="not an https URL"):
        fetch(of(server.url), tmp_path / "w.bin", SHA256)
