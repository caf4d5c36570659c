"""What the exported file of 7net-0 takes: seconds of making and loading it, bytes on disk and in memory; equal results.

    python tests/benchmarks/pretrained_size.py --data DATA_FOLDER [--model 7net-0] [--starts 5] [--runs 100]
        [--structures 20] [--edges 5000 10000 20000 30000] [--scratch FOLDER]

Lowering and the checks of an export are timed apart, in a process that has lowered nothing before. What scoring takes
is measured in fresh processes: importing `equiscreen.export`, loading the file, the first result of one crystal from
its structure on (what numba compiles is in its cache), which modules are loaded; the peak of resident memory (VmHWM,
so on Linux) before and after runs of one table with about so many edges, with one thread, and what that is for one
edge. Tables are of crystals with about equally many neighbours, as scoring makes them. The crystals are those of
mp_20_val.csv.gz, rattled by 0.05 angstrom and strained by 1 %. In the end --structures of them are evaluated --runs
times with one thread and as often with two: the bytes of all results have to be the same. Takes about five minutes;
prints what `pretrained_size.txt` keeps.
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

# A process that measures its imports begins here: everything else is imported where it is needed.
if TYPE_CHECKING:
    from equiscreen.pipeline import Structure

FIRST, MEMORY = "first", "memory"
MEMORY_RUNS = 3
POOL = 1_000  # crystals that tables are made of


def peak_memory() -> int:
    """Bytes that this process has held at most; what getrusage says counts the parent's from before the start."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def first_result(model: Path, structures: Path) -> dict[str, Any]:
    """Seconds from the start of a process that scores to its first result."""
    begin = time.perf_counter()
    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - this is what is measured

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
    from equiscreen.pipeline import GraphBlock, neighbor_table  # noqa: PLC0415 - likewise

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
    """What a fresh process measures, and its seconds as a whole."""
    path = folder / "structures.pickle"
    path.write_bytes(pickle.dumps(structures))
    words = [sys.executable, __file__, "--probe", kind, str(model), str(path)]
    begin = time.perf_counter()
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout), "process": seconds}


def make(source: str, folder: Path) -> Path:
    """Import, lower and check; prints what each takes.

    Returns:
        The ONNX file.
    """
    from equiscreen.export import exporter as exporting  # noqa: PLC0415 - see the top
    from equiscreen.model.pretrained.load import import_weights  # noqa: PLC0415 - likewise

    checkpoint, out = folder / "size.ckpt", folder / "size.onnx"
    begin = time.perf_counter()
    import_weights(source, checkpoint, overwrite=True)
    print(f"import {time.perf_counter() - begin:.1f} s, with the look at mirror images")
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
    """Imports, loading and first results of fresh processes."""
    probe(FIRST, model, [structure], folder)  # fills caches
    found = [probe(FIRST, model, [structure], folder) for _ in range(starts)]
    middle = {name: median(one[name] for one in found) for name in ("import", "load", "evaluate", "process")}
    to_first = [one["load"] + one["evaluate"] for one in found]
    print(
        f"a fresh process, median of {starts}: {middle['import']:.2f} s to import equiscreen.export; from the start of "
        f"loading to the first result {median(to_first):.2f} s ({min(to_first):.2f} to {max(to_first):.2f}): "
        f"{middle['load']:.2f} s to load, {middle['evaluate']:.2f} s to evaluate; {middle['process']:.2f} s in all"
    )
    heavy = sorted({name for one in found for name in one["heavy"]})
    print(f"of torch, e3nn, onnx and sevenn it has loaded {', '.join(heavy) or 'none'}", flush=True)


def table_of(structures: list[Structure], cutoff: float, edges: int) -> list[Structure]:
    """Crystals of about equally many neighbours that have about so many edges together.

    Raises:
        SystemExit: There are too few.
    """
    import numpy as np  # noqa: PLC0415 - see the top
    from equiscreen.pipeline import GraphBlock  # noqa: PLC0415 - likewise

    block = GraphBlock.from_structures(structures, cutoff)
    total = np.cumsum(block.n_edges[(order := np.argsort(block.max_neighbors, kind="stable"))])
    if total[-1] < edges:
        raise SystemExit(f"the crystals have {total[-1]:,} edges only")
    first = int(np.searchsorted(total, (total[-1] - edges) / 2))
    last = int(np.searchsorted(total, total[first] + edges))
    return [structures[row] for row in order[first:last]]


def print_memory(model: Path, structures: list[Structure], cutoff: float, edges: list[int], folder: Path) -> None:
    """Peaks of processes that evaluate tables of some sizes, and what an edge takes."""
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
            f"between {least['edges']:,} and {most['edges']:,} edges {grown / (most['edges'] - least['edges']):,.0f} "
            f"bytes/edge, {grown / (most['slots'] - least['slots']):,.0f} bytes/slot",
            flush=True,
        )


def print_repeats(model: Path, structures: list[Structure], runs: int) -> None:
    """How many different results the same structures have."""
    import hashlib  # noqa: PLC0415 - see the top

    from equiscreen.export import OnnxPotential  # noqa: PLC0415 - likewise
    from equiscreen.pipeline import GraphBlock  # noqa: PLC0415 - likewise

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
        f"each: {counts}, {together} together"
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
    from pretrained import crystals, header, kept_folder  # noqa: PLC0415 - likewise

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
