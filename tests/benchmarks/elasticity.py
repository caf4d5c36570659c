"""Elastic moduli of binary crystals with 7net-0: the error against DFT, the rate, and MatCalc with SevenNet's own code.

    python tests/benchmarks/elasticity.py --data DATA_FOLDER [--n 3500] [--default 200] [--peer PYTHON] [--clamped 100]
        [--relaxed 30] [--scratch FOLDER] [--results FILE] [--print]

The first --n crystals of `mp_binary_elasticity.json.gz`, in an order drawn at random, go through `properties --what
elastic` with the preset `matcalc` (ions clamped), and the first --default of them with the preset `default` (ions
relaxed), each in one Dask worker of one thread; the mean absolute errors of the bulk and shear moduli
(Voigt-Reuss-Hill averages) against DFT are printed. Crystals with a modulus that is negative or above 600 GPa, in DFT
or here, are counted and left out of the errors. All times are CPU times of the process that evaluates, so that other
work on the machine does not count.

Crystals are computed a hundred at a time. Results are kept in the file of --results, by default `elasticity.json`
beside this script; a later run does not repeat finished work, so that many short runs make the benchmark. `--print`
only prints the results that are there.

PYTHON is the interpreter of an environment with matcalc and sevenn, in which `elasticity_matcalc.py` runs on one
thread:

- the whole protocol of `matcalc`, relaxation included, on the first --clamped crystals, at most 100: the rates are
  compared, and the moduli, which differ where the two relaxations stop at different points within the same criterion;
- the same protocol without the relaxation, on the crystals that equiscreen relaxed, so that only the codes differ;
- the strains of the preset `default` with relaxed ions (0.001 eV/angstrom), on --relaxed crystals that equiscreen
  relaxed.

Without --peer only the first part runs. Prints the text of `elasticity.txt`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import xarray as xr
from distributed import LocalCluster
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.screening import compute_properties, open_scores
from equiscreen.screening.dataset.paths import graphs_path
from equiscreen.screening.properties.presets import PRESETS
from numpy.typing import NDArray
from pretrained import exported, header, kept_folder

SOURCE = "benchmarks/mp_binary_elasticity.json.gz"
MODEL = "7net-0"
SEED = 11
MODULI = ("bulk_modulus_vrh", "shear_modulus_vrh")
LARGEST = 600.0  # GPa; diamond has 440 and 520
TOGETHER = 100  # crystals that are computed and kept together
TOLERANCE = 1.0  # GPa


def references(data: Path, count: int) -> dict[str, dict[str, Any]]:
    """Random entries of the file, by id; a smaller sample is the start of a larger one."""
    with gzip.open(data / SOURCE) as file:
        entries = json.load(file)
    chosen = np.random.default_rng(SEED).permutation(len(entries))[:count]
    return {entries[place]["mp_id"]: entries[place] for place in chosen.tolist()}


def write_store(entries: Mapping[str, Mapping[str, Any]], folder: Path, first: int) -> Path:
    """A graph store of the crystals, in the order of the entries, of which `first` is the number of the first one."""
    store = folder / f"{first}-{len(entries)}.zarr"
    if store.exists():
        return store
    images = []
    for name, entry in entries.items():
        sites = entry["structure"]["sites"]
        symbols = [site["species"][0]["element"] for site in sites]
        numbers = [ase.data.atomic_numbers[symbol] for symbol in symbols]
        cell = entry["structure"]["lattice"]["matrix"]
        atoms = Structure.from_fractional(numbers, cell, [site["abc"] for site in sites]).to_ase()
        atoms.info["name"] = name
        images.append(atoms)
    ase.io.write(folder / "crystals.extxyz", images, format="extxyz")
    featurize(folder / "crystals.extxyz", store, cutoff=5.0, id_field="name", scheduler="threads")
    return store


def ours(store: Path, model: Path, out: Path, preset: str, scheduler: str) -> xr.Dataset:
    """Compute elastic tensors on a cluster, or open those of an earlier run."""
    if out.exists():
        return open_scores(out).load()
    return compute_properties(store, model, out, ["elastic"], preset=preset, scheduler=scheduler, progress=False).load()


def kept_part(found: xr.Dataset) -> dict[str, Any]:
    """What is kept of a computation: its CPU time (s), its number of evaluations, and the crystals by id."""
    words = found["elastic_status"].attrs["flag_meanings"].split()
    names = found["structure_id"].to_numpy().tolist()
    moduli = np.stack([found[name].to_numpy() for name in MODULI], axis=1)
    rows = zip(
        names, found["elastic_status"].to_numpy(), moduli, found["is_mechanically_stable"].to_numpy(), strict=True
    )
    return {
        "seconds": round(3600 * found.attrs["timing"]["core_hours"], 1),
        "evaluations": int(found.attrs["timing"]["evaluations"]),
        "crystals": {
            name: {
                "status": words[status],
                "moduli": [round(float(value), 3) if np.isfinite(value) else None for value in values],
                "stable": bool(stable),
            }
            for name, status, values, stable in rows
        },
    }


def print_errors(preset: str, parts: Sequence[Mapping[str, Any]], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the errors of the moduli against DFT."""
    rows = {name: row for part in parts for name, row in part["crystals"].items()}
    if not rows:
        return
    seconds, evaluations = (sum(part[name] for part in parts) for name in ("seconds", "evaluations"))
    counts = Counter(row["status"] for row in rows.values())
    print(
        f"preset {preset}, {len(rows)} crystals, {seconds:.0f} s, {60 * len(rows) / seconds:.1f} crystals per "
        f"core-minute, {evaluations / len(rows):.0f} evaluations each: "
        + ", ".join(f"{count} {word}" for word, count in counts.most_common())
    )
    mine = np.array([row["moduli"] for row in rows.values()], dtype=np.float64)
    dft = np.array([[entries[name][modulus] for modulus in MODULI] for name in rows])
    known = np.isfinite(mine).all(axis=1)
    sound = known & ((mine > 0) & (mine < LARGEST) & (dft > 0) & (dft < LARGEST)).all(axis=1)
    errors = mine[sound] - dft[sound]
    stable = np.array([row["stable"] for row in rows.values()])[known].mean()
    print(
        f"  against DFT, {sound.sum():,} crystals ({(known & ~sound).sum()} out of range): "
        + ", ".join(
            f"MAE of {name} {np.abs(values).mean():.1f} GPa (mean difference {values.mean():+.1f}, median absolute "
            f"{np.median(np.abs(values)):.1f})"
            for name, values in zip("KG", errors.T, strict=True)
        )
        + f"; {stable:.1%} mechanically stable"
    )


def matcalc(
    python: Path, structures: Sequence[Structure], folder: Path, name: str, **settings: Any
) -> tuple[float, NDArray[np.float64]]:
    """Run MatCalc on some crystals in its own environment; returns its CPU seconds and the moduli K and G (GPa)."""
    cells = [
        {"numbers": s.atomic_number.tolist(), "cell": s.cell.tolist(), "frac": s.frac_coord.tolist()}
        for s in structures
    ]
    given, made = folder / f"{name}.in.json", folder / f"{name}.out.json"
    given.write_text(json.dumps({"model": MODEL, "cells": cells, "settings": settings}))
    script = Path(__file__).with_name("elasticity_matcalc.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([python, script, given, made], check=True, env=environment)
    found = json.loads(made.read_text())
    return float(found["seconds"]), np.array(found["moduli"])


def print_agreement(title: str, mine: NDArray[np.float64], theirs: NDArray[np.float64], names: Sequence[str]) -> None:
    """Print how far the moduli of two codes differ."""
    difference = np.abs(mine - theirs).max(axis=1)
    known = np.isfinite(difference)
    equal = int((difference[known] <= TOLERANCE).sum())
    print(
        f"{title}: K and G of {equal} of {known.sum()} crystals within {TOLERANCE:g} GPa; median difference "
        f"{np.median(difference[known]):.3f} GPa, 95 % below {np.quantile(difference[known], 0.95):.3f}, largest "
        f"{difference[known].max():.3f}"
    )
    for place in np.argsort(-np.where(known, difference, -1)).tolist()[:10]:
        if difference[place] > TOLERANCE:
            own, other = ("/".join(f"{value:.1f}" for value in values) for values in (mine[place], theirs[place]))
            print(f"  {names[place]}: ours {own}, MatCalc {other}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=3500)
    parser.add_argument("--default", type=int, default=200)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--clamped", type=int, default=100)
    parser.add_argument("--relaxed", type=int, default=30)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--print", action="store_true")
    arguments = parser.parse_args()
    every = references(arguments.data, max(arguments.n, arguments.default))
    counts = {"matcalc": arguments.n, "default": arguments.default}
    kept = arguments.results
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    with kept_folder(arguments.scratch) as folder:
        if not arguments.print:
            model = exported(MODEL, folder)
            with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
                compute(every, counts, model, folder, cluster.scheduler_address, results, kept)
                if arguments.peer is not None:
                    print(header("moyopy"))
                    compare(arguments, folder, every, model, cluster.scheduler_address)
        print(header("moyopy"))
        for preset in counts:
            print_errors(preset, list(results.get(preset, {}).values()), every)


def compute(
    entries: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
    model: Path,
    folder: Path,
    scheduler: str,
    results: dict[str, dict[str, Any]],
    kept: Path,
) -> None:
    """Compute the crystals that earlier runs did not, and keep the results."""
    for preset, count in counts.items():
        parts = results.setdefault(preset, {})
        for first in range(0, count, TOGETHER):
            some = dict(list(entries.items())[first : min(first + TOGETHER, count)])
            if some.keys() <= parts.get(str(first), {"crystals": {}})["crystals"].keys():
                continue
            found = ours(
                write_store(some, folder, first), model, outcome_of(folder, preset, some, first), preset, scheduler
            )
            parts[str(first)] = kept_part(found)
            scratch = kept.with_name(f"unfinished-{kept.name}")
            scratch.write_text(as_text(results))
            scratch.replace(kept)
            print(f"{preset}: {first + len(some)} crystals done", flush=True)


def outcome_of(folder: Path, preset: str, entries: Mapping[str, Any], first: int) -> Path:
    """Path of the dataset of some crystals."""
    return folder / f"{preset}-{first}-{len(entries)}.zarr"


def as_text(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """JSON with one line per crystal."""
    presets = []
    for preset, parts in results.items():
        lines = []
        for first, part in parts.items():
            rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in part["crystals"].items())
            head = f'"seconds": {part["seconds"]}, "evaluations": {part["evaluations"]}'
            lines.append(f'"{first}": {{{head}, "crystals": {{\n' + ",\n".join(rows) + "}}")
        presets.append(f'"{preset}": {{\n' + ",\n".join(lines) + "}")
    return "{\n" + ",\n".join(presets) + "}\n"


def compare(
    arguments: argparse.Namespace, folder: Path, entries: Mapping[str, Any], model: Path, scheduler: str
) -> None:
    """Run MatCalc on the first crystals, and compare its moduli and its rate."""
    stores, relaxed, found = {}, {}, {}
    for preset, count in (("matcalc", arguments.n), ("default", arguments.default)):
        some = dict(list(entries.items())[: min(TOGETHER, count)])
        stores[preset] = GraphStore(write_store(some, folder, 0))
        out = outcome_of(folder, preset, some, 0)
        found[preset] = ours(stores[preset].path, model, out, preset, scheduler)
        relaxed[preset] = GraphStore(graphs_path(out)).block(0, len(some), labels=False)
    names = found["matcalc"]["structure_id"].to_numpy().tolist()
    moduli = {preset: np.stack([one[name].to_numpy() for name in MODULI], axis=1) for preset, one in found.items()}
    few = min(arguments.clamped, len(names))
    block = stores["matcalc"].block(0, few, labels=False)
    protocol = {"norm_strains": [-0.01, -0.005, 0.005, 0.01], "shear_strains": [-0.06, -0.03, 0.03, 0.06], "fmax": 0.05}
    cells = [block.structure(row) for row in range(few)]
    seconds, theirs = matcalc(arguments.peer, cells, folder, "whole", **protocol)
    rates = 60 * few / seconds, 60 * len(names) / (3600 * found["matcalc"].attrs["timing"]["core_hours"])
    print(
        f"MatCalc, SevenNet's calculator, one thread, relaxation included: {few} crystals in {seconds:.0f} s, "
        f"{rates[0]:.2f} per core-minute; ours {rates[1]:.1f} on the first {len(names)}, "
        f"{rates[1] / rates[0]:.1f} times as many"
    )
    print_agreement("each with its own relaxation", moduli["matcalc"][:few], theirs, names)
    cells = [relaxed["matcalc"].structure(row) for row in range(few)]
    _, theirs = matcalc(arguments.peer, cells, folder, "clamped", **protocol, relax_structure=False)
    print_agreement("the same relaxed crystals, ions clamped", moduli["matcalc"][:few], theirs, names)
    few = min(arguments.relaxed, len(stores["default"]))
    (elastic,) = PRESETS["default"].chosen(["elastic"])
    strains = {"norm_strains": list(elastic.normal_strains), "shear_strains": list(elastic.shear_strains)}  # type: ignore[attr-defined]
    cells = [relaxed["default"].structure(row) for row in range(few)]
    seconds, theirs = matcalc(
        arguments.peer,
        cells,
        folder,
        "relaxed",
        **strains,
        fmax=elastic.relax_ions.fmax,  # type: ignore[attr-defined]
        relax_structure=False,
        relax_deformed_structures=True,
    )
    print_agreement("the same relaxed crystals, ions relaxed", moduli["default"][:few], theirs, names)
    print(f"  MatCalc: {60 * few / seconds:.2f} crystals per core-minute, without the relaxation of the crystals")


if __name__ == "__main__":
    main()
