"""Hull distances per second on one core, compared with a loop over pymatgen's `PhaseDiagram`.

    OMP_NUM_THREADS=1 python tests/benchmarks/hull_rate.py --data FOLDER [--candidates 1000000]

Candidates have compositions of the Materials Project (`mp_20_val`) with randomly swapped elements, and random formation
energies. The references are the elements and the crystals of `mp_20_val`, as a table of formation energies. They cover
few of the chemical systems, so a second case has candidates of the 14 most frequent elements only, and 20,000
references made in the same way, about 100 per ternary system. `screening.hull` reads and writes datasets; the loop over
pymatgen makes one phase diagram per chemical system or, as is often seen, one per candidate. It runs over some of the
same systems, and the distances are compared. Its references are in memory, sorted by chemical system. "files included"
adds what else such a loop needs: it reads formulas and energies from the same dataset (xarray), makes the entries of
candidates and writes the distances beside the ids (xarray); reading and writing are timed for all candidates. "entries
in memory" is the diagrams and distances alone. All rates are by CPU time of this one process. The last line gives the
rate with MP2020 corrections, for the crystals of `mp_20_val` themselves, with uncorrected energies and a graph store.
Prints the text of `hull_rate.txt`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import platform
import resource
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from ase.data import chemical_symbols
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.graphs.offsets import offsets_of
from equiscreen.pipeline.runs.parts import PartArray, PartKey, write_part
from equiscreen.pipeline.store.compaction import Compaction, create_arrays, finish_store, shard_tasks, write_shard
from equiscreen.pipeline.store.row_sources import PartRows
from equiscreen.pipeline.store.schema import STRUCTURE, TEXT, ArraySpec, flags
from equiscreen.screening import hull
from equiscreen.screening.chemistry.composition import Compositions, formulas
from equiscreen.screening.convex_hull.energies import ScoredEnergies
from equiscreen.screening.convex_hull.reference_files import read_references
from equiscreen.screening.convex_hull.references import References
from equiscreen.screening.dataset.scores import SCORES_SCHEMA, STATUS_MEANINGS, open_scores
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

SEED = 7
PART = 65_536
MEAN, SPREAD = 0.15, 0.2  # of formation energies, eV/atom
SYSTEMS, PER_SYSTEM = 500, 200
MOST = 8  # maximum number of elements of a prototype
# The second case: as dense as the Materials Project among frequent elements.
DENSE_ELEMENTS, DENSE_REFERENCES = 14, 20_000
SPECS = (
    *(ArraySpec(name, (STRUCTURE,), TEXT) for name in ("structure_id", "formula")),
    ArraySpec("n_atoms", (STRUCTURE,), "int32"),
    ArraySpec("status", (STRUCTURE,), "uint8", flags(STATUS_MEANINGS)),
    *(ArraySpec(name, (STRUCTURE,), "float64") for name in ("energy", "energy_per_atom")),
)


def write_scores(path: Path, parts: Iterator[dict[str, PartArray]], **attrs: Any) -> Path:
    """Write a relaxed scores dataset."""
    folder = path.with_suffix(".parts")
    folder.mkdir()
    manifests = []
    for number, arrays in enumerate(parts):
        size = len(arrays["energy"])
        arrays["status"] = np.zeros(size, np.uint8)
        manifests.append(write_part(folder, PartKey(number, 0, size), arrays, {"read": size}, {}))
    rows = offsets_of([manifest.counts["read"] for manifest in manifests])
    sources = tuple(PartRows(folder, manifest.key, {}) for manifest in manifests)
    work = Compaction(path, SPECS, sources, {STRUCTURE: rows}, None, None, rows)
    create_arrays(work)
    digests = {key: value for task in shard_tasks(work) for key, value in write_shard(task).items()}
    finish_store(path, digests, {"schema": SCORES_SCHEMA, "kind": "relaxed", **attrs})
    return path


def swapped(
    prototypes: list[tuple[int, ...]], elements: dict[str, float], count: int, seed: int = SEED
) -> Iterator[dict[str, PartArray]]:
    """Candidates in parts: the element counts of random prototypes with other elements."""
    rng = np.random.default_rng(seed)
    symbols = sorted(elements)
    for start in range(0, count, PART):
        size = min(PART, count - start)
        arrays: dict[str, Any] = {"formula": [], "n_atoms": np.zeros(size, np.int32), "energy": np.zeros(size)}
        formation = rng.normal(MEAN, SPREAD, size)
        kinds = rng.integers(len(prototypes), size=size)
        places = np.argsort(rng.random((size, len(symbols))), axis=1)[:, :MOST]
        for row in range(size):
            counts = prototypes[kinds[row]]
            chosen = [symbols[place] for place in places[row, : len(counts)].tolist()]
            total = sum(counts)
            elemental = sum(elements[symbol] * n for symbol, n in zip(chosen, counts, strict=True))
            arrays["formula"].append("".join(f"{symbol}{n}" for symbol, n in zip(chosen, counts, strict=True)))
            arrays["n_atoms"][row], arrays["energy"][row] = total, elemental + total * formation[row]
        arrays["energy_per_atom"] = arrays["energy"] / arrays["n_atoms"]
        arrays["structure_id"] = [f"candidate-{start + row}" for row in range(size)]
        yield arrays


@dataclass(frozen=True)
class PymatgenRates:
    """Candidates per second of pymatgen, by CPU time, and a comparison with equiscreen.

    Attributes:
        with_files: One diagram per system, files included.
        per_system: One diagram per system, entries in memory.
        per_candidate: One diagram per candidate, entries in memory.
        difference: Largest difference of distances, eV/atom.
        compared: Number of candidates compared.
    """

    with_files: float
    per_system: float
    per_candidate: float
    difference: float
    compared: int


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of a call, and its result."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def entry_of(formula: str, energy_per_atom: float) -> PDEntry:
    """A candidate as an entry of pymatgen."""
    composition = Composition(formula)
    return PDEntry(composition, energy_per_atom * composition.num_atoms)


def read_columns(scores: Path) -> tuple[list[str], list[float]]:
    """Formulas and energies per atom of all candidates."""
    rows = open_scores(scores)
    return rows["formula"].values.tolist(), rows["energy_per_atom"].values.tolist()


def pymatgen_rates(scores: Path, found: Any, references: References, compositions: Compositions) -> PymatgenRates:
    """Rates of pymatgen, and a comparison with equiscreen."""
    known: dict[frozenset[str], list[PDEntry]] = defaultdict(list)
    for number, energy in zip(references.composition.tolist(), references.energy.tolist(), strict=True):
        entry = entry_of(compositions.formula(number), energy)
        known[frozenset(element.symbol for element in entry.composition.elements)].append(entry)
    reading, (texts, energies) = cpu_seconds(lambda: read_columns(scores))
    distances = found["energy_above_hull"].values
    target = scores.with_suffix(".pymatgen.zarr")
    table = xr.Dataset({name: (STRUCTURE, found[name].values) for name in ("structure_id", "energy_above_hull")})
    writing, _ = cpu_seconds(lambda: table.to_zarr(target, mode="w"))

    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows[compositions.system(compositions.of_formula(text))].append(row)
    shared = single = entries = worst = 0.0
    count = 0
    systems = list(rows)
    for system in [systems[place] for place in np.random.default_rng(SEED).permutation(len(systems))[:SYSTEMS]]:
        chosen = rows[system][:PER_SYSTEM]
        symbols = [chemical_symbols[number] for number in system]
        seconds, (near, mine) = cpu_seconds(
            lambda symbols=symbols, chosen=chosen: (
                [entry for other in subsets(symbols) for entry in known.get(other, ())],
                [entry_of(texts[row], energies[row]) for row in chosen],
            )
        )
        entries += seconds
        seconds, above = cpu_seconds(lambda near=near, mine=mine: above_hull(near, mine))
        shared += seconds
        seconds, _ = cpu_seconds(lambda near=near, mine=mine: [above_hull(near, [entry]) for entry in mine[:3]])
        single += seconds / len(mine[:3]) * len(mine)
        worst = max(worst, *(abs(a - b) for a, b in zip(above, distances[chosen].tolist(), strict=True)))
        count += len(mine)
    with_files = (reading + writing) / len(texts) + (entries + shared) / count
    return PymatgenRates(1 / with_files, count / shared, count / single, worst, count)


def subsets(symbols: Sequence[str]) -> Iterator[frozenset[str]]:
    """All chemical systems within a system."""
    for size in range(1, len(symbols) + 1):
        yield from map(frozenset, combinations(symbols, size))


def above_hull(near: list[PDEntry], candidates: list[PDEntry]) -> list[float]:
    """Distances of candidates from the hull of the references near them, eV/atom."""
    diagram = PhaseDiagram(near)
    return [diagram.get_e_above_hull(entry, allow_negative=True) for entry in candidates]


def corrected_rate(data: Path, rows: list[dict[str, str]], folder: Path) -> tuple[int, float]:
    """Number of structures, and structures per second with MP2020 corrections from the structure."""
    with (folder / "crystals.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "cif"])
        table.writerows((row["material_id"], row["cif"]) for row in rows)
    featurize(folder / "crystals.csv", folder / "g.zarr", cutoff=5.0, scheduler="threads", id_field="id")
    graphs = GraphStore(folder / "g.zarr")
    block = graphs.block(0, len(graphs), labels=False)
    arrays: dict[str, PartArray] = {
        "structure_id": graphs.column("structure_id").tolist(),
        "formula": formulas(block).tolist(),
        "n_atoms": block.n_atoms,
        "energy": -4.0 * block.n_atoms,
        "energy_per_atom": np.full(len(block), -4.0),
    }
    store = {"path": str(graphs.path), "store_hash": graphs.store_hash}
    scores = write_scores(
        folder / "c.zarr", iter([arrays]), graph_store=store, model={"energy_scheme": "mp-uncorrected"}
    )
    begin = time.perf_counter()
    hull(scores, data / "mp/mp_elemental_reference_entries.json.gz")
    return len(graphs), len(graphs) / (time.perf_counter() - begin)


def measure(scores: Path, entries: Path, table: Path) -> None:
    """Time the hull of a scores dataset and pymatgen, and print both."""
    begin, cpu = time.perf_counter(), time.process_time()
    found = hull(scores, [entries, table], scheme="mp2020-corrected")
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    compositions = Compositions()
    references = read(entries, table, scores, compositions)
    count, systems = found.sizes[STRUCTURE], set()
    for text in found["formula"].values.tolist():
        systems.add(compositions.system(compositions.of_formula(text)))
    below = found.attrs["hull"]["below_hull"]
    print(
        f"{count:,} candidates in {len(systems):,} systems, {len(references.energy):,} references, {below:,} "
        "candidates below their hull"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rate = count / cpu
    print(
        f"  equiscreen, files included: {rate:,.0f} candidates/s ({cpu:.1f} s of CPU, {seconds:.1f} s by the clock), "
        f"{memory:.2f} GB of memory"
    )
    peer = pymatgen_rates(scores, found, references, compositions)
    for name, other in (
        ("one diagram per system, files included", peer.with_files),
        ("one diagram per system, entries in memory", peer.per_system),
        ("one diagram per candidate, entries in memory", peer.per_candidate),
    ):
        print(f"  pymatgen, {name}: {other:,.0f} candidates/s; equiscreen {rate / other:,.1f}x")
    print(f"  largest difference of {peer.compared:,} distances: {peer.difference:.1e} eV/atom", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mp/")
    parser.add_argument("--candidates", type=int, default=1_000_000)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    packages = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "pymatgen", "scipy", "numpy"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, 1 of {os.cpu_count()} cores, {packages}")
    with gzip.open(arguments.data / "mp/mp_20_val.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    amounts = [Composition(row["pretty_formula"]).get_el_amt_dict() for row in rows]
    prototypes = [tuple(int(n) for n in some.values()) for some in amounts if len(some) > 1]
    entries = arguments.data / "mp/mp_elemental_reference_entries.json.gz"
    model = {"energy_scheme": "mp2020-corrected"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        elements = elemental(entries, folder)
        known = folder / "known.csv"
        with known.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["id", "formula", "formation_energy_per_atom"])
            out.writerows((r["material_id"], r["pretty_formula"], r["formation_energy_per_atom"]) for r in rows)
        candidates = swapped(prototypes, elements, arguments.candidates)
        measure(write_scores(folder / "all.zarr", candidates, model=model), entries, known)

        frequent = Counter(symbol for some in amounts for symbol in some).most_common(DENSE_ELEMENTS)
        few = {symbol: elements[symbol] for symbol, _ in frequent}
        dense = folder / "dense.csv"
        with dense.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["id", "formula", "energy_per_atom"])
            for part in swapped(prototypes, few, DENSE_REFERENCES, seed=SEED + 1):
                numbers = (f"known-{row}" for row in range(len(part["formula"])))
                out.writerows(zip(numbers, part["formula"], map(float, part["energy_per_atom"]), strict=True))
        candidates = swapped(prototypes, few, max(1, arguments.candidates // 5))
        measure(write_scores(folder / "few.zarr", candidates, model=model), entries, dense)

        n, with_corrections = corrected_rate(arguments.data, rows, folder)
        print(
            f"with corrections by structure (mp_20_val, {n:,} crystals, elements as references): "
            f"{with_corrections:,.0f} structures/s"
        )


def read(entries: Path, table: Path, scores: Path, compositions: Compositions) -> References:
    """The references, read as `hull` reads them."""
    from equiscreen.screening.convex_hull.mp2020 import MP2020  # noqa: PLC0415 - next to its only use

    candidates = ScoredEnergies(scores)
    return read_references([entries, table], candidates, compositions, MP2020(), scheme="mp2020-corrected")


def elemental(entries: Path, folder: Path) -> dict[str, float]:
    """Energies of the elements in eV/atom, by symbol."""
    one: dict[str, PartArray] = {
        "structure_id": ["x"],
        "formula": ["Fe"],
        "n_atoms": np.ones(1, np.int32),
        "energy": np.zeros(1),
        "energy_per_atom": np.zeros(1),
    }
    scores = write_scores(folder / "one.zarr", iter([one]), model={"energy_scheme": "mp2020-corrected"})
    compositions = Compositions()
    from equiscreen.screening.convex_hull.mp2020 import MP2020  # noqa: PLC0415 - next to its only use

    references = read_references([entries], ScoredEnergies(scores), compositions, MP2020())
    return {
        compositions.symbols(number)[0]: energy
        for number, energy in zip(references.composition.tolist(), references.energy.tolist(), strict=True)
    }


if __name__ == "__main__":
    main()
