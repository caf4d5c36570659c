"""Connecting to a Dask cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import EquiscreenError

IN_PROCESS = "threads"
# Workers that a task may lose before it is suspected. More would only cost time, since the task is retried anyway.
ALLOWED_DEATHS = 1
# By default each worker samples its own stack a hundred times a second, and its event loop wakes up fifty times a
# second. With one worker per core this slows the work by 3 %.
SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
    "distributed.worker.profile.interval": "200ms",
    "distributed.admin.tick.interval": "500ms",
}


@contextmanager
def connect(scheduler: str | None = None) -> Iterator[Any]:
    """Open a Dask client.

    Args:
        scheduler: None starts one worker process per core of this machine; ``threads`` runs tasks in this process
            (for debugging); anything else is the address of a running cluster, such as ``tcp://host:8786``.

    Yields:
        A `distributed.Client`.

    Raises:
        EquiscreenError: No cluster answers at the address.
    """
    import dask  # noqa: PLC0415 - see below
    from distributed import Client, LocalCluster  # noqa: PLC0415 - takes 0.7 s, and reading a store does not need it

    if scheduler not in (None, IN_PROCESS):
        try:
            client = Client(scheduler, timeout="5s")
        except (OSError, TimeoutError, ValueError) as error:
            raise EquiscreenError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    processes = scheduler is None
    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=(os.cpu_count() or 1) if processes else 1,
            threads_per_worker=1,
            processes=processes,
            host="127.0.0.1" if processes else None,
            dashboard_address="127.0.0.1:0",
            memory_limit="auto",
            silence_logs=logging.CRITICAL,  # errors are raised to the caller
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def dashboard(client: Any) -> str:
    """Address of the client's dashboard."""
    return str(client.dashboard_link)
