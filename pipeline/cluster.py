"""How work is spread over Dask: where the workers are, and how tasks are fed to them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from .errors import EquiscreenError

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_PROCESS = "threads"
# Tasks in flight for each worker: enough that none waits, few enough that the scheduler holds little.
TASKS_IN_FLIGHT = 3


@contextmanager
def connect(scheduler: str | None = None) -> Iterator[Any]:
    """Open a Dask client.

    Args:
        scheduler: None starts one worker process for each core of this machine; ``threads`` works in this process
            (for debugging); anything else is the address of a running cluster, such as ``tcp://host:8786``.

    Yields:
        A `distributed.Client`.

    Raises:
        EquiscreenError: No cluster answers at the address.
    """
    from distributed import Client, LocalCluster  # noqa: PLC0415 - 0.7 s, and reading a store needs none of it

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
        LocalCluster(
            n_workers=(os.cpu_count() or 1) if processes else 1,
            threads_per_worker=1,
            processes=processes,
            host="127.0.0.1" if processes else None,
            dashboard_address="127.0.0.1:0",
            memory_limit="auto",
            silence_logs=logging.CRITICAL,  # what fails is raised to the caller
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def dashboard(client: Any) -> str:
    """Address of the client's dashboard."""
    return str(client.dashboard_link)


def run_tasks(client: Any, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Run `function` on every item, on the workers, a window of items at a time.

    Results come in the order in which they finish. They should be small: a receipt, with the data on disk. A task may
    run more than once (a worker died, or was thought to be dead), so it has to be idempotent.

    Raises:
        EquiscreenError: A task killed several workers.
        Exception: What a task raised; the tasks in flight are cancelled.
    """
    from distributed import KilledWorker, as_completed  # noqa: PLC0415 - see connect

    waiting = iter(items)
    window = TASKS_IN_FLIGHT * max(1, len(client.scheduler_info()["workers"]))
    futures = [client.submit(function, item, pure=False) for item in islice(waiting, window)]
    running = as_completed(futures)
    try:
        for future in running:
            try:
                yield future.result()
            except KilledWorker as error:
                raise EquiscreenError(
                    f"a task killed every worker that tried it, by memory or a crash: {error}"
                ) from error
            future.release()
            for item in islice(waiting, 1):
                running.add(client.submit(function, item, pure=False))
    finally:
        # On an error or an interrupt the rest is of no use; after a normal end this is empty.
        client.cancel(list(running.futures), force=True)
