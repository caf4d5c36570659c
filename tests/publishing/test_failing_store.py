"""Object stores that are slow, busy or silent, or that forget their credentials: runs end in one line and resume."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
import s3fs
from equiscreen.pipeline.errors import EquiscreenError, OutputExistsError, StoreError
from equiscreen.publishing import open_catalogue, publish
from equiscreen.publishing.catalogue import SCORES

from ..local_servers import HOST, s3_environment, s3_server
from .datasets import write_dataset

COUNT = 20
BUSY, FORGOTTEN = (503, "SlowDown"), (403, "InvalidAccessKeyId")
# Answer to a request, given its number, method and path: status and error code; None for that of the store.
Plan = Callable[[int, str], tuple[int, str] | None]


def healthy(_number: int, _request: str) -> None:
    """The store answers every request."""


def slow(_number: int, _request: str) -> None:
    time.sleep(0.3)


def silent(_number: int, _request: str) -> None:
    time.sleep(10)


def busy(_number: int, _request: str) -> tuple[int, str]:
    return BUSY


class Gateway:
    """A server before an object store, which answers some requests itself.

    Attributes:
        plan: Decides about each request.
        requests: Number of requests so far.
        bucket: URL of an empty bucket.
    """

    def __init__(self, store: str) -> None:
        self.plan: Plan = healthy
        self.requests = 0
        self.bucket = f"s3://{uuid.uuid4().hex}"  # the stores of one process share their buckets
        gateway, netloc, counting = self, urlsplit(store).netloc, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                if self.headers.get("Expect", "").lower() == "100-continue":
                    self.send_response_only(100)
                    self.end_headers()
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with counting:
                    gateway.requests += 1
                    number = gateway.requests
                refusal = gateway.plan(number, f"{self.command} {self.path}")
                if refusal is None:
                    self.forward(body)
                else:
                    text = f"<Error><Code>{refusal[1]}</Code><Message>refused</Message></Error>".encode()
                    self.answer(refusal[0], {"Content-Type": "application/xml"}, text)

            def forward(self, body: bytes) -> None:
                connection = http.client.HTTPConnection(netloc)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                self.answer(answer.status, dict(answer.headers), answer.read(), answer.headers.get("Content-Length"))
                connection.close()

            def answer(self, status: int, headers: dict[str, str], content: bytes, size: str | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", size if self.command == "HEAD" and size else str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)


@contextmanager
def gateway_to(store: str) -> Iterator[Gateway]:
    gateway = Gateway(store)
    threading.Thread(target=gateway.server.serve_forever, args=(0.01,), daemon=True).start()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scores"), COUNT)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 2, "retries": {"max_attempts": 1}}}
    )
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 2)
    with (
        s3_server() as store,
        gateway_to(store) as found,
        s3_environment(f"http://{HOST}:{found.server.server_port}", monkeypatch) as files,
    ):
        files.mkdir(found.bucket)
        yield found


def one_line(error: pytest.ExceptionInfo[EquiscreenError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "secret" not in text
    return text


def forgets_after(count: int, gateway: Gateway) -> Plan:
    start = gateway.requests
    return lambda number, _: FORGOTTEN if number > start + count else None


@pytest.mark.slow
def test_a_slow_store_is_waited_for(dataset: Path, gateway: Gateway) -> None:
    place = f"{gateway.bucket}/alloys"
    gateway.plan = slow
    publish(dataset, place, report=False)
    assert open_catalogue(place).content.rows == COUNT


@pytest.mark.slow
def test_a_busy_store_is_asked_again(dataset: Path, gateway: Gateway) -> None:
    place = f"{gateway.bucket}/alloys"
    asked: set[str] = set()

    def busy_at_first(_: int, request: str) -> tuple[int, str] | None:
        new = request not in asked
        asked.add(request)
        return BUSY if new else None

    gateway.plan = busy_at_first
    publish(dataset, place, report=False)
    assert open_catalogue(place).content.rows == COUNT


@pytest.mark.slow
def test_a_store_that_stays_busy_or_silent_is_reported(dataset: Path, gateway: Gateway, tmp_path: Path) -> None:
    place = f"{gateway.bucket}/alloys"
    publish(dataset, place, report=False)
    for plan in (busy, silent):
        s3fs.S3FileSystem.clear_instance_cache()
        gateway.plan = plan
        with pytest.raises(OutputExistsError, match=r"s3://\w+/other cannot be written") as target:
            publish(dataset, f"{gateway.bucket}/other", report=False)
        with pytest.raises(StoreError, match=r"s3://\w+/alloys/catalogue\.json cannot be read") as catalogue:
            open_catalogue(place)
        with pytest.raises(StoreError, match=r"s3://\w+/alloys/scores\.zarr cannot be opened") as source:
            publish(f"{place}/{SCORES}", tmp_path / "public", report=False)
        for error in (target, catalogue, source):
            one_line(error)


@pytest.mark.slow
def test_a_run_whose_credentials_end_resumes_with_new_ones(dataset: Path, gateway: Gateway, tmp_path: Path) -> None:
    place = f"{gateway.bucket}/alloys"
    gateway.plan = forgets_after(30, gateway)
    with pytest.raises(OutputExistsError, match=r"s3://\w+/alloys cannot be written .*permissions") as target:
        publish(dataset, place, report=False)
    one_line(target)
    gateway.plan = healthy
    with pytest.raises(StoreError, match="publishing was interrupted"):
        open_catalogue(place)
    found = publish(dataset, place, report=False)
    assert 0 < found.copied < found.files
    assert open_catalogue(place).ranking().sizes["structure"] == COUNT
    # The credentials of the source end.
    asked = gateway.requests
    publish(f"{place}/{SCORES}", tmp_path / "whole", report=False)
    needed = gateway.requests - asked
    gateway.plan = forgets_after(3 * needed // 4, gateway)
    with pytest.raises(StoreError, match=r"s3://\w+/alloys/.* cannot be (read|opened|listed)") as source:
        publish(f"{place}/{SCORES}", tmp_path / "public", report=False)
    one_line(source)
    gateway.plan = healthy
    publish(f"{place}/{SCORES}", tmp_path / "public", report=False)
    assert open_catalogue(tmp_path / "public").content.rows == COUNT
