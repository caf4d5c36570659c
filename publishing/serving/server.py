"""Serving a scores dataset until the process is stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from ...pipeline.errors import ConfigError, detail
from ...screening.dataset.paths import dataset_in
from ..catalogue import CATALOGUE_FILE, open_catalogue
from .application import application

LOCAL_HOST, PORT = "127.0.0.1", 8000
# Largest number of requests that are answered or waiting at a time; further requests get the status 503.
_REQUESTS = 500
_LOCAL_NAMES = ["127.0.0.1", "localhost"]


def serve(
    scores: str | Path,
    *,
    host: str = LOCAL_HOST,
    port: int = PORT,
    title: str | None = None,
    store: str | Path | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve a scores dataset over HTTP until the process is stopped.

    Anybody who can reach the server can read the dataset: there are no passwords. By default, only programs on this
    machine can connect.

    Example:
        >>> from equiscreen.publishing import serve
        >>> serve("relaxed.hull.zarr", port=8080)  # doctest: +SKIP

    Args:
        scores: Path of the dataset, of a results folder that holds it, or of a folder written by `publish`.
        host: Address to listen on; ``0.0.0.0`` for all addresses of this machine.
        port: Port to listen on; 0 for any that is free.
        title: Title of the pages.
        store: Graph store of the scores, if it was moved.
        announce: Called with the address when the server is ready.

    Raises:
        StoreError: The dataset cannot be read, or does not match the catalogue in its folder.
        ConfigError: The dataset is at a URL or too large, or the server cannot listen at the address and port.
    """
    if "://" in str(scores):
        raise ConfigError(f"{scores}: only a dataset on this machine can be served; copy it here first")
    if (Path(scores) / CATALOGUE_FILE).exists():
        open_catalogue(scores)
    dataset = Path(dataset_in(scores))
    local = host in _LOCAL_NAMES
    app = application(
        dataset,
        None if store is None else Path(store),
        title=title or f"Screen of {dataset.name}",
        hosts=_LOCAL_NAMES if local else ["*"],
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()  # from now on, clients wait instead of being turned away
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({detail(error)}); choose another `--port` or `--host`"
            ) from error
        name = f"[{host}]" if ":" in host else host
        announce(f"{dataset}: http://{name}:{listening.getsockname()[1]}/ (Ctrl-C stops the server)")
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, limit_concurrency=_REQUESTS, timeout_keep_alive=30
        )
        uvicorn.Server(config).run(sockets=[listening])
