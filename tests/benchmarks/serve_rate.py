"""Time and bytes of the first page of a ranked list of 10^6 structures over HTTP, and the rate of a server's answers.

    python tests/benchmarks/serve_rate.py [--rows N] [--folder DIR]

The scores are random, with the formulas of binary and ternary compounds of 60 elements, and have no graph store. They
are published to a folder, which a plain web server (Python's, in its own process on this machine) serves while it
counts the bytes. A client in a new process reads the best 100 rows of all columns with xarray; opening the store is
part of the time. Then `equiscreen serve` answers queries from one client and from 50 at once. DIR keeps the dataset for
later runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

import numpy as np
from equiscreen.publishing import publish
from equiscreen.screening.chemistry.composition import formula_text
from equiscreen.tests.publishing.datasets import write_scores

ROWS, CLIENTS, REPEATS = 1_000_000, 50, 5
GOAL_S, GOAL_BYTES = 1.0, 5_000_000
# A web server that prints the bytes it has sent when its input ends.
SERVER = """
import functools, http.server, sys, threading
sent = 0
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def copyfile(self, source, target):
        global sent
        content = source.read()
        sent += len(content)
        target.write(content)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=sys.argv[1]))
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
print(sent, flush=True)
"""
CLIENT = """
import sys, time
import xarray
import aiohttp, fsspec.implementations.http, zarr
begin = time.perf_counter()
ranking = xarray.open_zarr(sys.argv[1], chunks=None)
page = ranking.isel(structure=slice(100)).load()
print(time.perf_counter() - begin, page.sizes["structure"], len(page.variables))
"""
QUERIES = {
    "first page, ranked": {},
    "page 5,000": {"page": 5_000},
    "a chemical system": {"chemical_system": "Cu-O"},
    "a range and elements": {"where": "energy_above_hull < 0.05 and n_atoms <= 20", "elements": "O"},
    "1,000 rows as Arrow": {"page_size": 1_000, "format": "arrow"},
}


def make_dataset(path: Path, rows: int) -> None:
    """Write scores of random compounds."""
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(20_000):
        elements = rng.choice(np.arange(3, 63), size=rng.integers(2, 4), replace=False)
        kinds.append(formula_text(tuple(elements.tolist()), tuple(rng.integers(1, 5, len(elements)).tolist())))
    chosen = rng.integers(0, len(kinds), rows).tolist()
    ids = [f"candidate-{row:07d}" for row in range(rows)]
    write_scores(path, ids, [kinds[one] for one in chosen], rng.integers(2, 40, rows), {})


def first_page(folder: Path) -> tuple[float, int]:
    """Seconds and bytes of the first page in a fresh client."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/ranking.zarr"
        done = subprocess.run([sys.executable, "-c", CLIENT, url], capture_output=True, text=True, check=True)
        server.stdin.close()
        sent = int(server.stdout.read())
    return float(done.stdout.split()[0]), sent


def answers(address: str) -> None:
    """Print the time of each query, alone and from many clients at once."""

    def ask(parameters: dict[str, object]) -> float:
        begin = time.perf_counter()
        with urllib.request.urlopen(f"{address}/query?{urlencode(parameters)}") as answer:  # noqa: S310
            answer.read()
        return time.perf_counter() - begin

    for label, parameters in QUERIES.items():
        first = ask(parameters)
        again = statistics.median(ask(parameters) for _ in range(REPEATS))
        print(f"{first:8.2f} s at first, {again:6.3f} s again: {label}", flush=True)
    work = [parameters for parameters in QUERIES.values() for _ in range(2 * CLIENTS // len(QUERIES))]
    begin = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        times = sorted(pool.map(ask, work))
    seconds = time.perf_counter() - begin
    print(
        f"{CLIENTS} clients at once: {len(work) / seconds:.1f} answers/s, median {statistics.median(times):.2f} s, "
        f"slowest {times[-1]:.2f} s"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "zarr", "xarray", "fastapi", "uvicorn"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {arguments.rows:,} rows")
    with TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        scores = folder / "s.zarr"
        if not scores.exists():
            make_dataset(scores, arguments.rows)
        made = publish(scores, Path(scratch) / "public", graphs=False, report=False, overwrite=True)
        print(f"{made.seconds:8.2f} s  publish: {made.files} files, {made.size / 1e6:.1f} MB", flush=True)
        pages = [first_page(Path(scratch) / "public") for _ in range(REPEATS)]
        seconds, sent = statistics.median(one for one, _ in pages), pages[0][1]
        print(
            f"{seconds:8.2f} s  first page of 100 rows, all columns, {sent / 1e6:.2f} MB (goals: {GOAL_S:g} s, "
            f"{GOAL_BYTES / 1e6:g} MB; {REPEATS} fresh clients, median; slowest {max(pages)[0]:.2f} s)",
            flush=True,
        )
        words = [sys.executable, "-m", "equiscreen", "serve", str(scores), "--port", "0"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", server.stderr.readline())
            assert found is not None
            answers(found[0])
            server.terminate()


if __name__ == "__main__":
    main()
