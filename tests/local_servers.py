"""Servers on this machine, to which tests connect as clients: an object store and web servers."""

from __future__ import annotations

import http.server
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import s3fs
from moto.server import ThreadedMotoServer

HOST = "127.0.0.1"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, without folder listings and without range requests."""

    def log_message(self, *_: object) -> None:
        pass

    def list_directory(self, path: object) -> None:  # type: ignore[override]  # noqa: ARG002
        self.send_error(http.HTTPStatus.NOT_FOUND)


@contextmanager
def s3_server(host: str = HOST) -> Iterator[str]:
    """Run an empty object store during this block, and yield its URL."""
    service = ThreadedMotoServer(host, port=0, verbose=False)
    service.start()
    address, port = service.get_host_and_port()
    yield f"http://{address}:{port}"
    service.stop()


@contextmanager
def s3_environment(url: str, patch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """Yield the file system of an object store; `patch` sets the environment variables that select this store."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # cached instances keep the environment they were made in
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()
