"""A student of 7net-0: its error and speed, and the recall of a cascade in which it is the fast stage.

    python tests/benchmarks/distill.py [--candidates 1500] [--unseen 3000] [--epochs 60] [--quick]

The candidates are crystals of the demo (intermetallics of the Materials Project) with other 3d metals or Al on their
sites. 7net-0 is distilled into the preset `small` on some of them. Then, on candidates that the distillation has not
seen:

- error: differences of energies, forces and stresses from the teacher, on whole compositions that were held out;
- speed: `screen` with student and teacher in turn on the same candidates, from a graph store, with one worker per core,
  end to end; and one thread of both in one process;
- recall: `cascade` keeps the fifth of the candidates with the lowest energies above hull by the student, and the
  accurate model relaxes these and, as its audit, all others. The lower bound is one-sided (95 %, Clopper-Pearson) over
  all hits, which are within 0.05 eV/atom of the hull by the relaxed energies of the teacher. The threshold depends only
  on the student, so it is not fitted to the hits.

`--quick` runs everything with few candidates, to see that it works; its figures mean nothing. Prints the text of
`distill.txt`.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import ase.io
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from equiscreen.campaigns import DistillSettings, distill, model_file
from equiscreen.campaigns.distillation.settings import VariantSettings
from equiscreen.pipeline import featurize
from equiscreen.screening import CascadeSettings, cascade, hull, open_scores, screen
from scipy.stats import beta

TEACHER, CUTOFF = "7net-0", 5.0
METALS = ["Al", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn"]
KEPT, TARGET = 0.2, 0.05
ROUNDS = 3


def write_candidates(folder: Path, counts: dict[str, int]) -> None:
    """Write different candidates to a file for each name, and the crystals they derive from as ``known.csv``."""
    rng = np.random.default_rng(1)
    known = ase.io.read(files("equiscreen.demo") / "crystals.extxyz", ":")
    taken: set[tuple[int, ...]] = set()
    for name, count in counts.items():
        candidates = []
        while len(candidates) < count:
            parent = int(rng.integers(len(known)))
            atoms = known[parent].copy()
            kinds, sites = np.unique(atoms.numbers, return_inverse=True)
            numbers = np.array([atomic_numbers[one] for one in rng.choice(METALS, len(kinds), replace=False)])
            if (parent, *numbers.tolist()) in taken:
                continue
            taken.add((parent, *numbers.tolist()))
            before = np.sum(covalent_radii[atoms.numbers] ** 3)
            atoms.numbers = numbers[sites]
            scale = (np.sum(covalent_radii[atoms.numbers] ** 3) / before) ** (1 / 3)
            atoms.set_cell(atoms.cell * scale, scale_atoms=True)
            atoms.info = {"structure_id": f"{name}-{len(candidates)}"}
            candidates.append(atoms)
        ase.io.write(folder / f"{name}.extxyz", candidates)
    with (folder / "known.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "formula", "formation_energy_per_atom", "scheme"])
        for atoms in known:
            energy = atoms.info["materials_project_eV_per_atom"]
            table.writerow([atoms.info["structure_id"], atoms.get_chemical_formula(), energy, "mp2020-corrected"])


def screen_rates(store: Path, models: dict[str, Path], folder: Path) -> None:
    """Print the rates of `screen` with each model, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    size = 0
    for turn in range(ROUNDS):
        for name, model in models.items():
            begin = time.monotonic()
            scores = screen(store, model, folder / f"{name}-{turn}.zarr", progress=False)
            seconds[name].append(time.monotonic() - begin)
            size = scores.sizes["structure"]
    for name, each in seconds.items():
        rates = ", ".join(f"{size / one:,.1f}" for one in each)
        print(f"screen with the {name}, {size:,} candidates, end to end, structures/s: {rates}", flush=True)
    ratios = np.array(seconds["teacher"]) / np.array(seconds["student"])
    print(f"ratio {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})", flush=True)


def threshold(store: Path, student: Path, folder: Path) -> float:
    """Return the energy above hull by the student below which it keeps a fifth of the candidates, eV/atom."""
    if not (folder / "fast.zarr").exists():
        screen(store, student, folder / "fast.zarr", progress=False)
    if not (folder / "fast.hull.zarr").exists():
        hull(folder / "fast.zarr", [folder / "known.csv"], folder / "fast.hull.zarr", progress=False)
    found = open_scores(folder / "fast.hull.zarr")
    above = found["energy_above_hull_unrelaxed"].values
    reliable = np.isfinite(above) & (found["status"].values == 0)
    # Candidates without a reliable energy are kept too, and count as part of the fifth.
    rank = int(KEPT * len(above)) - int((~reliable).sum())
    return float(np.sort(above[reliable])[max(0, rank - 1)])


def recall(store: Path, student: Path, teacher: Path, folder: Path, keep_below: float) -> None:
    """Run the cascade with an audit of all rejected candidates, and print its recall."""
    size = open_scores(folder / "fast.zarr").sizes["structure"]
    settings = CascadeSettings(keep_below=max(keep_below, TARGET), target=TARGET, audit=size)
    begin = time.monotonic()
    found = cascade(store, student, teacher, folder / "cascade", folder / "known.csv", settings, progress=False)
    about = found.attrs["cascade"]
    missed = about["recall"]["missed"]
    hits = about["hits"] + missed
    low = float(beta.ppf(0.05, hits - missed, missed + 1)) if hits > missed else 0.0
    print(
        f"cascade: keeps {about['kept']:,} of {about['screened']:,} candidates "
        f"({about['kept'] / about['screened']:.1%}) at most {settings.keep_below:.3f} eV/atom above the hull; of "
        f"{hits:,} hits, {missed:,} are missed: recall {1 - missed / max(1, hits):.2%}, lower bound {low:.2%}; "
        f"{time.monotonic() - begin:.0f} s",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1500, help="crystals to distill from")
    parser.add_argument("--unseen", type=int, default=3000, help="candidates for speed and recall")
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--folder", type=Path, help="folder to keep; an interrupted run resumes in it")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.candidates, given.unseen, given.variants, given.frames, given.epochs = 24, 30, 1, 0, 1
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}, onnxruntime {version('onnxruntime')}; {TEACHER} to "
        f"{given.preset}, {given.candidates:,} crystals, {given.variants} variants, {given.frames} frames, "
        f"{given.epochs} epochs",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "known.csv").exists():
            write_candidates(folder, {"seen": given.candidates, "unseen": given.unseen})
        for name in ("seen", "unseen"):
            if not (folder / f"{name}.zarr").exists():
                featurize(folder / f"{name}.extxyz", folder / f"{name}.zarr", cutoff=CUTOFF)
        variants = VariantSettings(given.variants, frames=given.frames)
        settings = DistillSettings(variants, preset=given.preset, epochs=given.epochs)
        begin = time.monotonic()
        report = distill(folder / "seen.zarr", folder / "student", TEACHER, settings, note=lambda _: None)
        print(f"distilled in {time.monotonic() - begin:.0f} s\n{str(report).partition(chr(10))[2]}", flush=True)
        teacher, student = model_file(TEACHER), folder / "student/student.onnx"
        store = folder / "unseen.zarr"
        with tempfile.TemporaryDirectory() as scores:
            screen_rates(store, {"teacher": teacher, "student": student}, Path(scores))
        recall(store, student, teacher, folder, threshold(store, student, folder))


if __name__ == "__main__":
    main()
