"""Cost of the exported file of 7net-0: seconds to make and load it, bytes on disk and in memory; repeatability.

    python tests/benchmarks/pretrained_size.py --data DATA_FOLDER [--model 7net-0] [--starts 5] [--runs 100]
        [--structures 20] [--edges 5000 10000 20000 30000] [--scratch FOLDER]

Lowering and the checks of an export are timed separately, in a process that has lowered nothing before. The cost of
scoring is measured in new processes: importing `equiscreen.export`, loading the file, the first result for one
structure (with numba's cache filled), and the modules loaded; also the peak of resident memory (VmHWM, only on Linux)
before and after single-threaded runs of one table of about --edges edges, and the memory per edge. Tables hold crystals
with similar numbers of neighbours, as in scoring. The crystals are those of mp_20_val.csv.gz, rattled by 0.05 angstrom
and strained by 1 %. Finally, --structures of them are evaluated --runs times with one thread and --runs times with two;
the bytes of all results have to be equal. Takes about five minutes. Prints the text of `pretrained_size.txt`.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest import mock

# Processes that measure their imports start here, so everything else is imported where it is needed.
if TYPE_CHECKING:
    from equiscreen.pipeline import Structure

FIRST, MEMORY = "first", "memory"
MEMORY_RUNS = 3
POOL = 1_000  # crystals from which the tables are made


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; getrusage would include the parent's memory before the start."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def first_result(model: Path, structures: Path) -> dict[str, Any]:
    """Seconds that a scoring process spends on imports, loading and the first result."""
    begin = time.perf_counter()
    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - the import is measured

    imported = time.perf_counter()
    (structure,) = pickle.loads(structures.read_bytes())  # noqa: S301 - written by this script
    ready = time.perf_counter()
    potential = OnnxPotential.load(model, threads=1)
    loaded = time.perf_counter()
    potential.evaluate_structures([structure])
    done = time.perf_counter()
    return {
        "import": imported - begin,
        "load": loaded - ready,
        "evaluate": done - loaded,
        "heavy": [name for name in ("torch", "e3nn", "onnx", "sevenn") if name in sys.modules],
    }


def memory(model: Path, structures: Path) -> dict[str, Any]:
    """Peak memory of a process that evaluates structures as one table."""
    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - see the top
    from equiscreen.pipeline import GraphBlock, neighbor_table  # noqa: PLC0415 - see the top

    potential = OnnxPotential.load(model, threads=1)
    chosen = pickle.loads(structures.read_bytes())  # noqa: S301 - written by this script
    potential.evaluate_structures(chosen[:1])
    block = GraphBlock.from_structures(chosen, potential.cutoff)
    table = neighbor_table(block, potential.cutoff)
    before = peak_memory()
    for _ in range(MEMORY_RUNS):
        potential.run_table(table.arrays())
    edges, slots = int(block.n_edges.sum()), int(table.neighbors.size)
    return {"edges": edges, "slots": slots, "before": before, "after": peak_memory()}


PROBES = {FIRST: first_result, MEMORY: memory}


def probe(kind: str, model: Path, structures: list[Structure], folder: Path) -> dict[str, Any]:
    """Measurements of a new process, and its total run time in seconds."""
    path = folder / "structures.pickle"
    path.write_bytes(pickle.dumps(structures))
    command = [sys.executable, __file__, "--probe", kind, str(model), str(path)]
    begin = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout), "process": seconds}


def make(source: str, folder: Path) -> Path:
    """Import, lower and check; print the time of each.

    Returns:
        Path of the ONNX file.
    """
    from equiscreen.export import exporter as exporting  # noqa: PLC0415 - see the top
    from equiscreen.model.pretrained.load import import_weights  # noqa: PLC0415 - see the top

    checkpoint, out = folder / "size.ckpt", folder / "size.onnx"
    begin = time.perf_counter()
    import_weights(source, checkpoint, overwrite=True)
    print(f"import {time.perf_counter() - begin:.1f} s, including the comparison of mirror images")
    lowering: list[float] = []

    def timed(*inputs: Any) -> Any:
        begin = time.perf_counter()
        model = lower(*inputs)
        lowering.append(time.perf_counter() - begin)
        return model

    lower = exporting.lower
    with mock.patch.object(exporting, "lower", timed):
        report = exporting.export_onnx(checkpoint, out, overwrite=True)
    rest = report.seconds - sum(lowering)
    print(f"export: lowering {sum(lowering):.1f} s, checks {rest:.1f} s")
    print(f"file: {report.size_bytes:,} bytes, {report.nodes:,} nodes", flush=True)
    return out


def print_starts(model: Path, structure: Structure, starts: int, folder: Path) -> None:
    """Print the times of imports, loading and first results in new processes."""
    probe(FIRST, model, [structure], folder)  # fills caches
    found = [probe(FIRST, model, [structure], folder) for _ in range(starts)]
    middle = {name: median(one[name] for one in found) for name in ("import", "load", "evaluate", "process")}
    to_first = [one["load"] + one["evaluate"] for one in found]
    print(
        f"new process, median of {starts}: {middle['import']:.2f} s to import equiscreen.export; from the start of "
        f"loading to the first result {median(to_first):.2f} s ({min(to_first):.2f} to {max(to_first):.2f}): "
        f"{middle['load']:.2f} s to load, {middle['evaluate']:.2f} s to evaluate; {middle['process']:.2f} s in total"
    )
    heavy = sorted({name for one in found for name in one["heavy"]})
    print(f"loaded of torch, e3nn, onnx and sevenn: {', '.join(heavy) or 'none'}", flush=True)


def table_of(structures: list[Structure], cutoff: float, edges: int) -> list[Structure]:
    """Crystals with similar numbers of neighbours and about `edges` edges in total.

    Raises:
        SystemExit: The crystals have fewer edges.
    """
    import numpy as np  # noqa: PLC0415 - see the top
    from equiscreen.pipeline import GraphBlock  # noqa: PLC0415 - see the top

    block = GraphBlock.from_structures(structures, cutoff)
    total = np.cumsum(block.n_edges[(order := np.argsort(block.max_neighbors, kind="stable"))])
    if total[-1] < edges:
        raise SystemExit(f"the crystals have only {total[-1]:,} edges")
    first = int(np.searchsorted(total, (total[-1] - edges) / 2))
    last = int(np.searchsorted(total, total[first] + edges))
    return [structures[row] for row in order[first:last]]


def print_memory(model: Path, structures: list[Structure], cutoff: float, edges: list[int], folder: Path) -> None:
    """Print the peak memory of processes that evaluate tables of several sizes, and the memory per edge."""
    found = [probe(MEMORY, model, table_of(structures, cutoff, count), folder) for count in sorted(edges)]
    for one in found:
        print(
            f"one table of {one['edges']:,} edges ({one['slots']:,} slots): peak of resident memory "
            f"{one['after'] / 1e6:,.0f} MB, {one['before'] / 1e6:,.0f} MB before its first run"
        )
    least, most = found[0], found[-1]
    if most["edges"] > least["edges"]:
        grown = most["after"] - least["after"]
        print(
            f"between {least['edges']:,} and {most['edges']:,} edges: {grown / (most['edges'] - least['edges']):,.0f} "
            f"bytes/edge, {grown / (most['slots'] - least['slots']):,.0f} bytes/slot",
            flush=True,
        )


def print_repeats(model: Path, structures: list[Structure], runs: int) -> None:
    """Print the number of different results of repeated runs on the same structures."""
    import hashlib  # noqa: PLC0415 - see the top

    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - see the top
    from equiscreen.pipeline import GraphBlock  # noqa: PLC0415 - see the top

    digests: dict[int, set[str]] = {}
    for threads in (1, 2):
        potential = OnnxPotential.load(model, threads=threads)
        block = GraphBlock.from_structures(structures, potential.cutoff)
        for _ in range(runs):
            content = b"".join(values.tobytes() for values in potential.evaluate(block).arrays().values())
            digests.setdefault(threads, set()).add(hashlib.sha256(content).hexdigest())
    counts = ", ".join(f"{len(found)} with {threads} thread(s)" for threads, found in digests.items())
    together = len(set.union(*digests.values()))
    print(
        f"different results (all bytes of energies, forces, stresses) of {len(structures)} crystals in {runs} runs "
        f"each: {counts}, {together} in total"
    )


def main() -> None:
    """Run the benchmark."""
    if len(sys.argv) == 5 and sys.argv[1] == "--probe":
        print(json.dumps(PROBES[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="7net-0")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--structures", type=int, default=20)
    parser.add_argument("--edges", type=int, nargs="+", default=[5_000, 10_000, 20_000, 30_000])
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - see the top
    from pretrained import crystals, header, kept_folder  # noqa: PLC0415 - see the top

    print(header("sevenn", "numba"))
    print(arguments.model, flush=True)
    structures = list(crystals(arguments.data, max(POOL, arguments.structures)).values())
    with kept_folder(arguments.scratch) as folder:
        model = make(arguments.model, folder)
        print_starts(model, structures[0], arguments.starts, folder)
        print_memory(model, structures, OnnxPotential.load(model).cutoff, arguments.edges, folder)
        print_repeats(model, structures[: arguments.structures], arguments.runs)


if __name__ == "__main__":
    main()
