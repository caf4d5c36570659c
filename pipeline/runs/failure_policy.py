"""Execution of tasks on a Dask cluster, with a policy for tasks that kill their workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import EquiscreenError
from .cluster import check_reached, check_seen, jobs_of, restore_workers, this_worker, workers_with
from .worker_versions import Versions, check_versions, versions

Item = TypeVar("Item")
Result = TypeVar("Result")
# Tasks in flight per worker: enough that no worker waits, few enough that the scheduler holds little.
TASKS_IN_FLIGHT = 3
# Seconds after which a run without workers ends, on a cluster and on this machine. A cluster may have no workers while
# its jobs wait in a queue; processes on this machine start at once. After the first interval, LOOK_EVERY_S, the user is
# informed.
WITHOUT_WORKERS_S, WITHOUT_PROCESSES_S, LOOK_EVERY_S = 300, 60, 10
# A worker restarts within a few seconds, on a busy machine within half a minute; its nanny notices a moment later.
RESTART_S, SETTLE_S = 60, 2.0
# The scheduler is asked for its workers at most this often, since its answer grows with their number.
_COUNT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class FailurePolicy(Generic[Item]):
    """What to do with a task whose workers die.

    Attributes:
        split: Divides the work into smaller tasks; returns an empty sequence if it cannot be divided.
        skip: Returns the same task without the work that kills workers.
        retry_alone: Whether a task is run again on its own before it is divided. Dask also suspects tasks that only
            waited on a worker that died; where dividing a task changes the rounding of its results, an innocent task
            must not be divided.
    """

    split: Callable[[Item], Sequence[Item]]
    skip: Callable[[Item], Item]
    retry_alone: bool = False


def run_tasks(
    client: Any,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    failure_policy: FailurePolicy[Item] | None = None,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    shared: Sequence[str | Path] = (),
    resource: str | None = None,
) -> Iterator[Result]:
    """Run `function` on every item, on the workers, a window of items at a time.

    Results arrive in the order in which the tasks finish. They should be small: a manifest, with the data on disk. A
    task may run more than once (if its worker died or seemed dead), so it must be idempotent.

    An item whose workers die is divided. An item that cannot be divided is retried at the end with no other task in
    flight, since Dask also suspects tasks that only waited on the same worker; if it kills its workers again, its
    harmful work is skipped.

    Args:
        client: Dask client.
        function: Processes one item.
        items: Items, taken as workers become free.
        failure_policy: How items are divided and skipped; without a policy, a dead worker is an error.
        note: Shows a line of text to the user.
        shared: Files and folders that every worker must see, and URLs of stores that it must reach.
        resource: Resource that a worker must declare to get tasks; None lets all workers work.

    Raises:
        EquiscreenError: A task killed its workers and there is no policy, no workers are left, the scheduler is lost,
            or a worker has different versions or does not see a shared file.
        Exception: An error raised by a task; the tasks in flight are cancelled.
    """
    on_worker = _OnCheckedWorker(function, tuple(map(str, shared)), versions())
    run = _TasksInFlight(client, on_worker, iter(items), failure_policy, note, resource)
    try:
        run.fill()
        yield from run.finished(alone=False)
        for suspect in run.suspects:  # the list grows during the loop
            run.submit([suspect])
            yield from run.finished(alone=True)
    except Exception as error:
        if client.status == "running":
            raise
        raise EquiscreenError(
            "the connection to the Dask scheduler was lost; restart the scheduler if it has stopped, and run the same "
            "command again to resume"
        ) from error
    finally:
        if client.status == "running":
            # After an error or an interrupt, the remaining tasks are useless; after a normal end, there are none.
            client.cancel(list(run.items), force=True)


@dataclass(frozen=True, slots=True)
class _OnCheckedWorker(Generic[Item, Result]):
    """The function of a task, called after checking that its worker has the same versions and sees the shared files.

    Attributes:
        function: Processes one item.
        shared: Paths that must exist, and URLs of stores.
        versions: Versions of the process that started the run.
    """

    function: Callable[[Item], Result]
    shared: tuple[str, ...]
    versions: Versions

    @property
    def __name__(self) -> str:
        """Name of the function; Dask names its tasks after it, and its dashboard groups and colours tasks by name."""
        from dask.utils import funcname  # noqa: PLC0415 - reading a store does not need Dask

        return str(funcname(self.function))

    def __call__(self, item: Item) -> Result:
        check_versions(self.versions, this_worker())
        for path in self.shared:
            if "://" in path:
                check_reached(path)
            else:
                check_seen(path)
        return self.function(item)


class _TasksInFlight(Generic[Item, Result]):
    """Tasks that have been submitted but not finished, and tasks that are suspected of killing workers."""

    def __init__(
        self,
        client: Any,
        function: Callable[[Item], Result],
        waiting: Iterator[Item],
        failure_policy: FailurePolicy[Item] | None,
        note: Callable[[str], None],
        resource: str | None,
    ) -> None:
        self.client, self.function, self.waiting, self.failure_policy = client, function, waiting, failure_policy
        self.note, self.resource = note, resource
        self.items: dict[Any, Item] = {}
        # Futures put themselves here when they end: to wait for the first of all would cost more the more there are.
        self.ended: SimpleQueue[Any] = SimpleQueue()
        self.suspects: list[Item] = []
        self.workers = self.current = workers_with(client, resource)
        self.counted = time.monotonic()
        self.jobs, self.had_workers, self.told = jobs_of(client), self.workers > 0, ""
        if self.jobs is not None:
            self.jobs.note_result()

    def submit(self, some: Iterable[Item]) -> None:
        for item in some:
            needed = None if self.resource is None else {self.resource: 1}
            future = self.client.submit(self.function, item, pure=False, resources=needed)
            self.items[future] = item
            future.add_done_callback(self.ended.put)

    def fill(self) -> None:
        """Submit waiting items until every current worker has enough of them."""
        if time.monotonic() > self.counted + _COUNT_EVERY_S:
            self.current, self.counted = workers_with(self.client, self.resource), time.monotonic()
        wanted = TASKS_IN_FLIGHT * max(1, self.current) - len(self.items)
        self.submit(islice(self.waiting, max(0, wanted)))

    def finished(self, *, alone: bool) -> Iterator[Result]:
        """Yield results until nothing is in flight or waiting. With `alone`, one task is in flight at a time."""
        from distributed import KilledWorker  # noqa: PLC0415 - see connect

        while self.items:
            future = self._next()
            item = self.items.pop(future)
            try:
                result = future.result()
            except KilledWorker as error:
                if self.failure_policy is None:
                    raise EquiscreenError(
                        f"a task killed its workers, which ran out of memory or crashed ({error}); run the same "
                        "command again with more memory per worker"
                    ) from error
                self._recover(item, self.failure_policy, alone=alone)
            else:
                yield result
            future.release()
            self.fill()

    def _next(self) -> Any:
        """Wait for a task to end, successfully or not.

        Raises:
            EquiscreenError: There are no workers, and none has joined for a while: a cluster may lose all its nodes, or
                jobs may end as soon as they start.
        """
        limit = self._patience_s()
        interval = min(LOOK_EVERY_S, limit)
        without = 0  # seconds without workers
        while True:
            try:
                future = self.ended.get(timeout=interval)
            except Empty:
                without = 0 if workers_with(self.client, self.resource) else without + interval
                if self.jobs is not None:
                    self.jobs.check_progress()
                if without:
                    self._wait_for_workers(without, limit)
            else:
                self.had_workers, self.told = True, ""
                if self.jobs is not None:
                    self.jobs.note_result()
                return future

    def _patience_s(self) -> int:
        """Return the time without workers after which the run ends, seconds."""
        if self.jobs is not None:
            return self.jobs.settings.wait_s
        return WITHOUT_WORKERS_S if self.client.cluster is None else min(WITHOUT_WORKERS_S, WITHOUT_PROCESSES_S)

    def _wait_for_workers(self, without: int, limit: int) -> None:
        """Tell the user what the run is waiting for, and try to get workers back.

        Raises:
            EquiscreenError: The run has waited too long, or jobs cannot start.
        """
        kind = "" if self.resource is None else f" with the resource {self.resource}"
        lost = f"no workers{kind} are left, and none has joined" if self.had_workers else f"no worker{kind} has joined"
        if self.jobs is not None:
            waiting = f"waiting for workers: {self.jobs.waiting()}"
            if self.jobs.failure:
                raise EquiscreenError(f"{self.jobs.failure}; run the same command again to resume")
            if without >= limit:
                raise EquiscreenError(
                    f"{lost} for {limit} s ({waiting}); check queue, account and resources in {self.jobs.file}, or "
                    "raise its `wait`, and run the same command again"
                )
        else:
            waiting = f"waiting for workers: none{kind} are connected; the run ends after {limit} s without workers"
            if without >= limit:
                check = (
                    "" if self.had_workers else f"check that workers run and reach {self.client.scheduler.address}; "
                )
                raise EquiscreenError(f"{lost} for {limit} s; {check}run the same command again to resume")
        if waiting != self.told:
            self.note(waiting)
            self.told = waiting
        restore_workers(self.client)

    def _wait_for_restarts(self) -> None:
        """Let dead workers come back before they receive a task that may kill them again.

        A nanny gives up on a worker that dies while starting, and that worker is lost.
        """
        with suppress(TimeoutError):
            self.client.wait_for_workers(max(1, self.workers), timeout=RESTART_S)
        found = workers_with(self.client, self.resource)
        if found < self.workers:
            restore_workers(self.client)
        self.workers = found  # a lost worker is not waited for again
        time.sleep(SETTLE_S)

    def _recover(self, item: Item, failure_policy: FailurePolicy[Item], *, alone: bool) -> None:
        """Retry, divide or skip an item whose workers died."""
        self._wait_for_restarts()
        if failure_policy.retry_alone and not alone:
            self.suspects.append(item)
        elif halves := failure_policy.split(item):
            if alone:
                self.suspects.extend(halves)
            else:
                self.submit(halves)
        elif alone:
            self.submit([failure_policy.skip(item)])
        else:
            self.suspects.append(item)
