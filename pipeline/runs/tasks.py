"""Running tasks on a Dask cluster, with a policy for tasks that kill their worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from ..errors import EquiscreenError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Tasks in flight for each worker: enough that none waits, few enough that the scheduler holds little.
TASKS_IN_FLIGHT = 3
# A cluster may have none for a while, as its queue has it.
WITHOUT_WORKERS_S = 300
# A worker is back after some seconds; its nanny knows a moment later.
RESTART_S, SETTLE_S = 20, 0.5


@dataclass(frozen=True, slots=True)
class FailurePolicy(Generic[Item]):
    """What to do about a task whose workers die.

    Attributes:
        halves: The same work in smaller tasks; empty if it cannot be divided.
        give_up: A task that does without what cannot be done.
    """

    halves: Callable[[Item], Sequence[Item]]
    give_up: Callable[[Item], Item]


def run_tasks(
    client: Any,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    failure_policy: FailurePolicy[Item] | None = None,
) -> Iterator[Result]:
    """Run `function` on every item, on the workers, a window of items at a time.

    Results come in the order in which they finish. They should be small: a manifest, with the data on disk. A task may
    run more than once (a worker died, or was thought to be dead), so it has to be idempotent.

    An item whose workers die is divided. One that cannot be divided is tried again at the end with no other beside it,
    since Dask also suspects those that only waited on the same worker, and then given up.

    Args:
        client: Dask client.
        function: Of one item.
        items: Taken as workers become free.
        failure_policy: How items are divided and given up; without it a death is an error.

    Raises:
        EquiscreenError: A task killed its workers.
        Exception: What a task raised; the tasks in flight are cancelled.
    """
    run = _Run(client, function, iter(items), failure_policy)
    try:
        run.fill()
        yield from run.finished(alone=False)
        for suspect in run.suspects:
            run.submit([suspect])
            yield from run.finished(alone=True)
    finally:
        # On an error or an interrupt the rest is of no use; after a normal end this is empty.
        client.cancel(list(run.items), force=True)


class _Run(Generic[Item, Result]):
    """The tasks in flight."""

    def __init__(
        self,
        client: Any,
        function: Callable[[Item], Result],
        waiting: Iterator[Item],
        failure_policy: FailurePolicy[Item] | None,
    ) -> None:
        self.client, self.function, self.waiting, self.failure_policy = client, function, waiting, failure_policy
        self.items: dict[Any, Item] = {}
        self.suspects: list[Item] = []
        self.workers = len(client.nthreads())

    def submit(self, some: Iterable[Item]) -> None:
        for item in some:
            future = self.client.submit(self.function, item, pure=False)
            self.items[future] = item

    def fill(self) -> None:
        """Take so many items that every worker there is now has some."""
        wanted = TASKS_IN_FLIGHT * max(1, len(self.client.nthreads())) - len(self.items)
        self.submit(islice(self.waiting, max(0, wanted)))

    def finished(self, *, alone: bool) -> Iterator[Result]:
        """Results until nothing is in flight or waits. `alone` says that a task in flight had no other beside it."""
        from distributed import KilledWorker  # noqa: PLC0415 - see connect

        while self.items:
            future = self._next()
            item = self.items.pop(future)
            try:
                result = future.result()
            except KilledWorker as error:
                if self.failure_policy is None:
                    raise EquiscreenError(f"a task killed its workers, by memory or a crash: {error}") from error
                self._salvage(item, self.failure_policy, alone=alone)
            else:
                yield result
            future.release()
            self.fill()

    def _next(self) -> Any:
        """A task that has ended, in whatever way.

        Raises:
            EquiscreenError: No worker is left, and none has come for a while: a nanny gives up when the worker that it
                starts dies at once, and a cluster may lose all its nodes.
        """
        from distributed import wait  # noqa: PLC0415 - see connect

        while True:
            try:
                ended = wait(list(self.items), timeout=WITHOUT_WORKERS_S, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                if not self.client.nthreads():
                    raise EquiscreenError(
                        f"no worker is left, and none has come for {WITHOUT_WORKERS_S} s; run the same command again "
                        "to go on"
                    ) from None
            else:
                return next(future for future in self.items if future in ended)

    def _wait_for_restarts(self) -> None:
        """Let dead workers come back before they get something that may kill them again.

        A nanny whose worker dies while it starts it gives up, and the worker is lost.
        """
        with suppress(TimeoutError):
            self.client.wait_for_workers(max(1, self.workers), timeout=RESTART_S)
        self.workers = len(self.client.nthreads())  # one that is lost is not waited for again
        time.sleep(SETTLE_S)

    def _salvage(self, item: Item, failure_policy: FailurePolicy[Item], *, alone: bool) -> None:
        self._wait_for_restarts()
        halves = failure_policy.halves(item)
        if halves:
            self.submit(halves)
        elif alone:
            self.submit([failure_policy.give_up(item)])
        else:
            self.suspects.append(item)
