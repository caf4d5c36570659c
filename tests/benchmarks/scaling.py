"""What a campaign of 10^8 structures asks of the process that runs it: costs per task, and a replay with kills.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py costs [--parts 1000 25000]
    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py record DATA_FOLDER
    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py replay [--parts 24415] [--shorter 2000]

`costs` measures what grows with the number of parts, with the package's own code and parts of the usual size
(4,096 structures of 12 atoms and 366 edges): the time of client and scheduler for a task that does nothing, the time to
write and to read the marks of finished parts when a run resumes, the time to plan a screen, and the number and size of
the tasks that write the shards of a graph store.

`record` screens 30,000 candidates of `equiscreen generate` with an untrained network of the preset `small`, and keeps
the seconds of each part in `scaling_parts.json`.

`replay` runs a campaign whose tasks wait as long as those parts took, divided by `--shorter`, and write one row for
each part. It has as many parts as 10^8 structures, a scheduler and eight worker processes. Workers end at a walltime
and come back; every few seconds one worker is killed, and every half minute the process of the run itself, which is
then started again. At the end each part must be in the store once, in order; the bytes must be those of a run in one
process that nothing disturbed. Prints the text of `scaling.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import LocalCluster
from equiscreen.pipeline.runs import failure_policy
from equiscreen.pipeline.runs.cluster import SETTINGS, connect
from equiscreen.pipeline.runs.failure_policy import run_tasks
from equiscreen.pipeline.runs.options import RunOptions
from equiscreen.pipeline.runs.parts import PartKey, PartManifest, committed, write_part
from equiscreen.pipeline.store.compaction import Compaction, shard_tasks
from equiscreen.pipeline.store.graph_store import GraphStore
from equiscreen.pipeline.store.row_sources import PartRows
from equiscreen.pipeline.store.schema import ATOM, EDGE, STRUCTURE, ArraySpec
from equiscreen.pipeline.store.writer import StoreWriter
from equiscreen.screening.scoring.screen import cut_screen

PART, ATOMS, EDGES = 4_096, 12, 366
RECORDED = Path(__file__).with_name("scaling_parts.json")
SPECS = (ArraySpec("part", (STRUCTURE,), "int64"),)
# Of the replay: workers, their walltime and its spread, and seconds between kills of a worker and of the client.
WORKERS, WALLTIME_S, SPREAD_S, WORKER_KILL_S, CLIENT_KILL_S = 8, 60, 20, 7, 30
SEED = 11


@dataclass(frozen=True)
class Nap:
    """Work of a part of the replay: wait, then write one row.

    Attributes:
        number: Number of the part.
        seconds: Time to wait.
        folder: Folder of the parts.
    """

    number: int
    seconds: float
    folder: Path


def nap(task: Nap) -> PartManifest:
    """Do the work of a part."""
    time.sleep(task.seconds)
    arrays = {"part": np.array([task.number])}
    return write_part(task.folder, PartKey(task.number, 0, 1), arrays, {"read": 1}, {"seconds": task.seconds})


def nothing(number: int) -> int:
    """A task without work."""
    return number


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of a call in this process, and its result."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def costs(counts: list[int]) -> None:
    """Measure what grows with the number of parts."""
    with connect(None) as client:
        list(run_tasks(client, nothing, range(100)))
        usual, workers = failure_policy.TASKS_IN_FLIGHT, len(client.nthreads())
        for count, as_of in [*((count, workers) for count in counts), (counts[0], 1_000)]:
            failure_policy.TASKS_IN_FLIGHT = -(-usual * as_of // workers)
            begin = time.perf_counter()
            seconds, done = cpu_seconds(lambda count=count: sum(1 for _ in run_tasks(client, nothing, range(count))))
            memory = psutil.Process().memory_info().rss / 1e9
            print(
                f"{done:,} tasks without work, as many in flight as for {as_of:,} workers: {1e3 * seconds / done:.2f} "
                f"ms of CPU each in client and scheduler, {done / (time.perf_counter() - begin):,.0f} tasks/s, "
                f"{memory:.2f} GB",
                flush=True,
            )
        failure_policy.TASKS_IN_FLIGHT = usual
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            naps = [Nap(number, 0.0, folder) for number in range(count)]
            writing, _ = cpu_seconds(lambda naps=naps: [nap(one) for one in naps])
            reading, found = cpu_seconds(lambda folder=folder: committed(folder))
        planning, tasks = cpu_seconds(lambda count=count: list(map(len, map(pickle.dumps, store_tasks(count)))))
        cutting, parts = cpu_seconds(lambda count=count: cut_screen(np.full(count * PART, EDGES, np.int32)))
        print(
            f"{count:,} parts ({count * PART:,} structures): {1e3 * writing / count:.2f} ms each to write an empty "
            f"one, {1e3 * reading / len(found):.2f} ms to find it again; {len(tasks):,} tasks that write shards, of at "
            f"most {max(tasks) / 1e3:,.1f} kB, planned in {planning:.1f} s; {len(parts):,} parts of a screen, planned "
            f"in {cutting:.1f} s",
            flush=True,
        )


def store_tasks(count: int) -> Any:
    """Tasks that write the shards of a graph store with the rows of usual parts."""
    specs = (
        ArraySpec("n_atoms", (STRUCTURE,), "int32"),
        ArraySpec("atomic_number", (ATOM,), "uint8"),
        ArraySpec("receiver", (EDGE,), "int32"),
    )
    offsets = np.arange(count + 1, dtype=np.int64) * PART
    folder = Path("/scratch/user/campaign/graphs.zarr.partial/0123456789abcdef")
    sources = tuple(PartRows(folder / "parts", PartKey(number, 0, PART), {}) for number in range(count))
    rows = {STRUCTURE: offsets, ATOM: ATOMS * offsets, EDGE: EDGES * offsets}
    return shard_tasks(Compaction(folder / "store", specs, sources, rows, None, None, offsets))


def record(data: Path, candidates: int) -> None:
    """Keep the seconds of each part of a screen."""
    from screen_rate import CUTOFF, run, small_model  # noqa: PLC0415 - imports torch

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        run("featurize", data / "mp/mp_20_val.csv.gz", "--out", scratch / "prototypes.zarr", "--cutoff", CUTOFF)
        source, store, out = scratch / "candidates.parquet", scratch / "g.zarr", scratch / "s.zarr"
        run("generate", scratch / "prototypes.zarr", "--out", source, "--count", candidates, "--seed", 0)
        run("featurize", source, "--out", store, "--cutoff", CUTOFF)
        words = ["screen", store, "--model", small_model(scratch / "small.onnx"), "--out", out]
        process = subprocess.Popen([sys.executable, "-m", "equiscreen", *map(str, words)], stderr=subprocess.DEVNULL)
        wanted = len(cut_screen(GraphStore(store).n_edges))
        seconds: dict[str, float] = {}
        while process.poll() is None:  # the marks are removed when the run ends
            for mark in scratch.glob("s.zarr.partial/*/parts/*.json"):
                if mark.name not in seconds:
                    try:
                        seconds[mark.name] = json.loads(mark.read_text())["content"]["notes"]["seconds"]
                    except FileNotFoundError:
                        break
            time.sleep(0.02)
        if process.returncode or len(seconds) < wanted - 1:
            sys.exit(f"the screen ended with {process.returncode}; {len(seconds)} of {wanted} parts were seen")
    RECORDED.write_text(json.dumps({"candidates": candidates, "seconds": sorted(seconds.values())}) + "\n")
    least, most = min(seconds.values()), max(seconds.values())
    print(f"{len(seconds)} parts of {candidates:,} candidates: {least:.2f} to {most:.2f} s")


def campaign(scheduler: str, out: Path, count: int, shorter: float) -> None:
    """Run the replayed campaign, or resume it."""
    recorded = json.loads(RECORDED.read_text())["seconds"]
    waits = np.random.default_rng(SEED).choice(recorded, count) / shorter
    writer = StoreWriter(
        "replay",
        out,
        {"schema": "equiscreen-replay/1", "parts": count},
        RunOptions(scheduler=scheduler, progress=False),
    )
    if writer.resume_publication() is not None:
        return
    with writer.run(count) as run:
        done = {manifest.number for manifest in run.resumed}
        missing = (Nap(n, float(waits[n]), run.staging.parts) for n in range(count) if n not in done)
        manifests = run.make_parts(nap, missing)
        run.publish(run.concatenate(SPECS, manifests), {"schema": "equiscreen-replay/1", "parts": count})


def workers_of(cluster: LocalCluster) -> list[int]:
    """Process numbers of the workers that run."""
    return [nanny.pid for nanny in cluster.workers.values() if nanny.pid]


def replay(count: int, shorter: float) -> None:
    """Run the campaign with kills, then without, and compare."""
    import dask  # noqa: PLC0415 - the settings of the scheduler

    chance = random.Random(SEED)  # which worker dies
    with tempfile.TemporaryDirectory() as name, dask.config.set(SETTINGS):
        disturbed, calm = Path(name) / "disturbed.zarr", Path(name) / "calm.zarr"
        settings = {
            "lifetime": f"{WALLTIME_S}s",
            "lifetime_stagger": f"{SPREAD_S}s",
            "lifetime_restart": True,
            "dashboard_address": None,
            "silence_logs": 60,
        }
        begin = time.perf_counter()
        killed, restarts, most = 0, -1, 0.0
        with LocalCluster(n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", **settings) as cluster:
            words = ["campaign", cluster.scheduler_address, str(disturbed), str(count), str(shorter)]
            while not disturbed.exists():
                restarts += 1
                client = subprocess.Popen([sys.executable, __file__, *words])
                end, next_kill = time.monotonic() + CLIENT_KILL_S, time.monotonic() + WORKER_KILL_S
                while client.poll() is None and time.monotonic() < end:
                    time.sleep(0.2)
                    try:
                        most = max(most, psutil.Process(client.pid).memory_info().rss / 1e9)
                    except psutil.NoSuchProcess:
                        break
                    alive = workers_of(cluster)
                    if len(alive) < WORKERS:  # a batch system replaces jobs that end, too
                        cluster.scale(WORKERS)
                    if time.monotonic() > next_kill and alive:
                        next_kill += WORKER_KILL_S
                        os.kill(chance.choice(alive), signal.SIGKILL)
                        killed += 1
                if client.poll() is None:
                    client.kill()
                if client.wait() not in (0, -signal.SIGKILL):
                    sys.exit(f"the campaign ended with {client.returncode}")
        seconds = time.perf_counter() - begin
        campaign("threads", calm, count, 1e9)
        stores = [StoreFacts.of(path) for path in (disturbed, calm)]
    found = stores[0]
    print(
        f"{count:,} parts on {WORKERS} workers: {seconds:.0f} s; {killed} workers killed, each ended at a walltime of "
        f"{WALLTIME_S} +- {SPREAD_S} s; the client killed {restarts} times, at most {most:.2f} GB; {found.rows:,} rows "
        f"in order: {found.in_order}; equal to the undisturbed run: {found == stores[1]}",
        flush=True,
    )
    if found != stores[1] or not found.in_order or found.rows != count:
        sys.exit(1)


@dataclass(frozen=True)
class StoreFacts:
    """What two stores have in common if nothing was lost: hash, rows, and whether they are in order."""

    store_hash: str
    rows: int
    in_order: bool

    @classmethod
    def of(cls, path: Path) -> StoreFacts:
        """Read a store of the replay."""
        import zarr  # noqa: PLC0415 - next to its only use

        root = zarr.open_group(path, mode="r")
        values = np.asarray(root["part"])
        return cls(str(root.attrs["store_hash"]), len(values), bool((values == np.arange(len(values))).all()))


def main() -> None:
    """Run one part of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("costs")
    verb.add_argument("--parts", type=int, nargs="+", default=[1_000, 25_000])
    verb = verbs.add_parser("record")
    verb.add_argument("data", type=Path)
    verb.add_argument("--candidates", type=int, default=30_000)
    verb = verbs.add_parser("replay")
    verb.add_argument("--parts", type=int, default=-(-(10**8) // PART))
    verb.add_argument("--shorter", type=float, default=2_000)
    verb = verbs.add_parser("campaign")
    for name, kind in (("scheduler", str), ("out", Path), ("count", int), ("shorter", float)):
        verb.add_argument(name, type=kind)
    arguments = parser.parse_args()
    if arguments.verb == "campaign":
        campaign(arguments.scheduler, arguments.out, arguments.count, arguments.shorter)
        return
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "distributed", "zarr", "numpy"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, {packages}", flush=True)
    if arguments.verb == "costs":
        costs(arguments.parts)
    elif arguments.verb == "record":
        record(arguments.data, arguments.candidates)
    else:
        replay(arguments.parts, arguments.shorter)


if __name__ == "__main__":
    main()
