"""Thermal conductivities of the benchmark phonondb-103, beside published ones of the same model and DFT references.

    python tests/benchmarks/kappa.py --data DATA_FOLDER --work FOLDER [--materials SUBSET|all|SrO-rs,BeO-wz,...]
        [--model 7net-0] [--threads 2] [--results FILE] [--print]

The protocol is the published one (Póta et al., arXiv:2408.00755): relaxation of atoms and cell to 1e-4 eV/angstrom with
the space group kept, displacements of 0.01 angstrom, supercells and meshes of the benchmark, and conductivities in the
relaxation-time approximation at 300 K with coherences and isotopes but no non-analytical term. The published relaxation
uses FIRE; ours uses L-BFGS with the same criterion.

The forces of each material are kept in the work folder, its conductivity in the file of --results, by default
`kappa.json` beside this script for 7net-0 and MODEL.json in the work folder for others. A later run does not repeat
finished work, so that many short runs make the benchmark. `--print` only prints the results that are there. The
columns SRME and SRE compare with the DFT references with (NAC) and without (noNAC) the non-analytical term; the
published values of 7net-0 compare with NAC. Prints the text of `kappa.txt`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.structures.symmetry import find_symmetry
from equiscreen.screening.properties.evaluation import run_stages
from equiscreen.screening.properties.lattice_dynamics.conductivity_errors import (
    LARGEST_ERROR,
    ModeConductivities,
    relative_difference,
    relative_mode_error,
)
from equiscreen.screening.properties.presets import PRESETS
from equiscreen.screening.properties.protocol import PROPERTY_STATUSES, SYMMETRY_CHANGED, Material, Outcome
from equiscreen.screening.relaxation.batched import RELAX_STATUSES, relax_structures
from pretrained import exported, header

STRUCTURES = "benchmarks/phonondb_103_structures.extxyz.gz"
REFERENCES = {name: f"benchmarks/kappas_phononDB_PBE_{name}.json.gz" for name in ("NAC", "noNAC")}
PUBLISHED = {"7net-0": "benchmarks/kappa_sevennet0_published.json.gz"}
# Ten cubic and three wurtzite crystals, light and heavy, of high and low conductivity; for AgCl and BN the published
# SRME is 2.
SUBSET = (
    "SrO-rs", "MgO-rs", "NaCl-rs", "LiF-rs", "PbTe-rs", "AgCl-rs", "GaAs-zb", "CdTe-zb", "BeSe-zb", "BN-zb",
    "BeO-wz", "SiC-wz", "ZnO-wz",
)  # fmt: skip
KINDS = {225: "rs", 216: "zb", 186: "wz"}
PRESET = PRESETS["phonondb-103"]
RELAXATION = replace(PRESET.relaxation, allow_extrapolation=True)
(PROPERTY,) = PRESET.chosen(["kappa"])
SYMPREC = PRESET.relaxation.symprec
KEPT = Path(__file__).with_suffix(".json")
CLOSE = 0.03  # relative difference of conductivities


@dataclass(frozen=True, slots=True)
class Crystal:
    """One crystal of the benchmark.

    Attributes:
        name: Formula and kind of structure.
        mp_id: Id in the Materials Project.
        structure: The crystal before relaxation.
        group: Number of the space group.
    """

    name: str
    mp_id: str
    structure: Structure
    group: int


def crystals(data: Path) -> list[Crystal]:
    """All crystals of the benchmark, in the order of the file."""
    text = gzip.decompress((data / STRUCTURES).read_bytes()).decode()
    found = []
    for atoms in ase.io.read(io.StringIO(text), index=":", format="extxyz"):
        group = int(atoms.info["symm.no"])
        name = f"{atoms.info['name']}-{KINDS[group]}"
        found.append(Crystal(name, str(atoms.info["mp_id"]), Structure.from_ase(atoms), group))
    return found


def relaxed(crystal: Crystal, potential: OnnxPotential) -> tuple[Material, int, str]:
    """The relaxed crystal, the number of its space group, and the status of the relaxation."""
    ((_, one),) = relax_structures([(0, crystal.structure)], potential, RELAXATION)
    if one.last is None:
        raise SystemExit(f"{crystal.name}: {one.reason}")
    last = one.last
    found = find_symmetry(last.structure, SYMPREC)
    material = Material(last.structure, last.energy, last.forces, last.stress, SYMPREC)
    return material, 0 if found is None else found.number, RELAX_STATUSES[one.status]


def forces(crystal: Crystal, potential: OnnxPotential, file: Path) -> None:
    """Relax a crystal and evaluate its supercells; writes the arrays that the transport equation needs."""
    begin = time.perf_counter()
    material, group, status = relaxed(crystal, potential)
    relax_seconds = time.perf_counter() - begin
    if group == crystal.group:
        one = run_stages({0: PROPERTY.stages(material)}, potential)[0]
    else:
        one = Outcome(SYMMETRY_CHANGED, note=f"space group {group}")
    arrays = {
        **one.values,
        **one.tables,
        "cell": material.structure.cell,
        "frac_coord": material.structure.frac_coord,
        "status": one.status,
        "note": one.note,
        "relaxation": status,
        "relax_seconds": relax_seconds,
        "force_seconds": time.perf_counter() - begin - relax_seconds,
    }
    written(file, lambda scratch: np.savez(scratch, **arrays))


def written(file: Path, write: Any) -> None:
    """Write a file under another name first, so that an interrupted run leaves no incomplete file."""
    scratch = file.with_name(f"unfinished-{file.name}")
    write(scratch)
    scratch.rename(file)


@dataclass(frozen=True, slots=True)
class Reference:
    """Conductivity of a crystal in DFT.

    Attributes:
        conductivities: Total and parts by mode.
        wave_vector: Irreducible wave vectors: float64[n, 3].
    """

    conductivities: ModeConductivities
    wave_vector: np.ndarray


def references(data: Path, name: str) -> dict[str, Reference]:
    """References by id."""
    table = json.loads(gzip.decompress((data / REFERENCES[name]).read_bytes()))
    return {
        mp_id: Reference(
            ModeConductivities(
                table["kappa_TOT_ave"][row][0],
                np.array(table["mode_kappa_TOT_ave"][row][0]),
                np.array(table["weights"][row], dtype=np.float64),
            ),
            np.array(table["qpoints"][row]),
        )
        for row, mp_id in table["mp_id"].items()
    }


def conductivity(crystal: Crystal, source: Path, compared: Sequence[Reference]) -> dict[str, Any]:
    """Solve the transport equation with the forces of a crystal; returns what the table shows.

    The errors are those against each of the references.

    Raises:
        SystemExit: The wave vectors are not those of the references.
    """
    with np.load(source) as found:
        arrays = {name: found[name] for name in found.files}
    result: dict[str, Any] = {
        name: arrays[name].item() for name in ("status", "note", "relaxation", "relax_seconds", "force_seconds")
    }
    result.update(
        status=PROPERTY_STATUSES[result["status"]],
        min_frequency=float(arrays.get("kappa_min_frequency", np.nan)),
        displacements=int(arrays.get("n_kappa_displacements", 0)),
        volume=float(abs(np.linalg.det(arrays["cell"]))),
    )
    predicted = None
    if result["status"] == "ok":
        structure = Structure.from_fractional(crystal.structure.atomic_number, arrays["cell"], arrays["frac_coord"])
        zero = np.zeros((len(structure), 3))
        begin = time.perf_counter()
        one = PROPERTY.finish(Material(structure, 0.0, zero, np.zeros((3, 3)), SYMPREC), arrays)
        result.update(
            kappa_seconds=time.perf_counter() - begin,
            kappa=float(one.values["kappa"]),
            coherence=float(one.values["kappa_coherence"]),
        )
        wave_vector, weights = one.tables["kappa_wave_vector"], one.tables["kappa_weight"]
        for reference in compared:
            difference = wave_vector - reference.wave_vector
            if np.abs(difference - np.rint(difference)).max() > 1e-6:
                raise SystemExit(f"{crystal.name}: its irreducible wave vectors are not those of the reference")
        predicted = ModeConductivities(result["kappa"], one.tables["mode_kappa"].reshape(len(weights), -1), weights)
    result.update(
        srme=[relative_mode_error(predicted, each.conductivities) for each in compared],
        sre=[abs(relative_difference(predicted, each.conductivities)) for each in compared],
    )
    return result


def print_results(
    chosen: Sequence[Crystal],
    results: dict[str, dict[str, Any]],
    compared: Mapping[str, Sequence[Reference]],
    data: Path,
    model: str,
) -> None:
    """Print the table, and means over the materials that are finished."""
    rows = json.loads(gzip.decompress((data / PUBLISHED[model]).read_bytes())) if model in PUBLISHED else []
    published = {row["mp_id"]: row for row in rows}
    print(
        f"\n{'material':<10}{'kappa':>9}{'publ.':>9}{'ratio':>8}{'coh.':>7}{'NAC':>8}{'noNAC':>8}{'SRME NAC':>10}"
        f"{'publ.':>8}{'noNAC':>8}{'SRE NAC':>9}{'publ.':>8}{'cells':>7}{'relax s':>9}{'forces s':>10}{'kappa s':>9}"
    )
    found = []
    for crystal in chosen:
        if crystal.name not in results:
            continue
        result = results[crystal.name]
        totals = [each.conductivities.total for each in compared[crystal.mp_id]]
        theirs = published.get(crystal.mp_id, {})
        kappa = result.get("kappa", np.nan)
        ratio = kappa / theirs["kappa"] if theirs.get("kappa") else np.nan
        print(
            f"{crystal.name:<10}{kappa:>9.3f}{theirs.get('kappa') or np.nan:>9.3f}{ratio:>8.3f}"
            f"{result.get('coherence', np.nan):>7.3f}{totals[0]:>8.2f}{totals[1]:>8.2f}"
            f"{result['srme'][0]:>10.4f}{theirs.get('srme', np.nan):>8.4f}{result['srme'][1]:>8.4f}"
            f"{result['sre'][0]:>9.4f}{theirs.get('sre', np.nan):>8.4f}{result['displacements']:>7}"
            f"{result['relax_seconds']:>9.1f}{result['force_seconds']:>10.1f}{result.get('kappa_seconds', 0.0):>9.1f}"
            + ("" if "kappa" in result else f"  {result['status']}: {result['note']}"),
            flush=True,
        )
        found.append((result["srme"], theirs.get("srme", np.nan), ratio, result))
    print_summary(found, len(chosen))


def print_summary(found: Sequence[tuple[list[float], float, float, dict[str, Any]]], count: int) -> None:
    """Print means over the materials, and times."""
    if not found:
        return
    errors, theirs, ratios = (np.array([row[place] for row in found]) for place in range(3))
    stable = np.isfinite(ratios) & (theirs < LARGEST_ERROR)
    results = [row[3] for row in found]
    sums = {name: sum(one.get(name, 0.0) for one in results) for name in ("force_seconds", "kappa_seconds")}
    close = int((np.abs(ratios[stable] - 1) <= CLOSE).sum())
    largest, published = (int((values == LARGEST_ERROR).sum()) for values in (errors[:, 0], theirs))
    print(
        f"\n{len(found)} of {count} materials: mean SRME {errors[:, 0].mean():.4f} against NAC (published "
        f"{theirs.mean():.4f}), {errors[:, 1].mean():.4f} against noNAC"
    )
    print(
        f"largest difference of an SRME from the published one {np.abs(errors[:, 0] - theirs).max():.4f}; kappa within "
        f"{CLOSE:.0%} of the published one for {close} of {int(stable.sum())} materials with a published SRME below 2"
    )
    print(f"an SRME of 2 for {largest}, published for {published}")
    print(f"forces {sums['force_seconds']:,.0f} s, transport equation {sums['kappa_seconds']:,.0f} s in all")


def main(data: Path, work: Path, names: str, model: str, threads: int, kept: Path, *, only_print: bool) -> None:
    # Set before phono3py is imported, whose compiled code ignores OMP_NUM_THREADS.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    work.mkdir(parents=True, exist_ok=True)
    every = {crystal.name: crystal for crystal in crystals(data)}
    wanted = {"all": (*SUBSET, *(name for name in every if name not in SUBSET)), "SUBSET": SUBSET}
    chosen = [every[name] for name in wanted.get(names, names.split(","))]
    by_name = [references(data, name) for name in REFERENCES]
    compared = {mp_id: [each[mp_id] for each in by_name] for mp_id in by_name[0]}
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    if not only_print:
        file = exported(model, work)
        potential = OnnxPotential.load(file, threads=threads)
        potential.evaluate(GraphBlock.from_structures([chosen[0].structure], potential.cutoff))  # warm up
        for crystal in chosen:
            if crystal.name in results:
                continue
            arrays = work / f"{crystal.name}.npz"
            if not arrays.exists():
                forces(crystal, potential, arrays)
            results[crystal.name] = conductivity(crystal, arrays, compared[crystal.mp_id])
            written(kept, lambda scratch: scratch.write_text(json.dumps(results, indent=1) + "\n"))
            print(f"{crystal.name} done", flush=True)
    print(header("phonopy", "phono3py"))
    print(f"{model}, {threads} threads")
    print_results(chosen, results, compared, data, model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--materials", default="SUBSET")
    parser.add_argument("--model", default="7net-0")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    main(
        options.data,
        options.work,
        options.materials,
        options.model,
        options.threads,
        options.results or (KEPT if options.model == "7net-0" else options.work / f"{options.model}.json"),
        only_print=options.print,
    )
