"""How well 7net-0 finds crystals near the hull: precision, recall and F1 on 11,870 crystals of the Materials Project.

    python tests/benchmarks/screening_skill.py DATA_FOLDER

The crystals of mp_20_val and mpts_52_val, at their DFT geometries, are ranked against the hull that their own published
energies span; the truth is the distance of these energies to that hull. Most of the crystals are part of MPtrj, on
which the model was trained, and nine of ten are near the hull, so the figures are better than for new crystals. Prints
the text of `screening_skill.txt`.
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from equiscreen.campaigns import rank
from equiscreen.pipeline import LabelMapping, featurize
from equiscreen.screening import hull, open_scores
from equiscreen.screening.chemistry.elemental_energies import elemental_energies
from numpy.typing import NDArray
from pymatgen.core import Composition

NEAR = 0.05  # eV/atom
SCHEME = "mp2020-corrected"
HALOGENS, CHALCOGENS, PNICTOGENS = {"F", "Cl", "Br", "I"}, {"S", "Se", "Te"}, {"N", "P", "As", "Sb", "Bi"}


def chemistry(formula: str) -> str:
    symbols = set(re.findall(r"[A-Z][a-z]?", formula))
    if "O" in symbols:
        return "oxides"
    for name, anions in (("halides", HALOGENS), ("chalcogenides", CHALCOGENS), ("pnictides", PNICTOGENS)):
        if symbols & anions:
            return name
    return "intermetallics and others"


def write_tables(data: Path, folder: Path) -> None:
    """Write the crystals with their energies per atom, and their formation energies as references."""
    elements = elemental_energies("mp-uncorrected")
    with (
        (folder / "crystals.csv").open("w", newline="") as one,
        (folder / "references.csv").open("w", newline="") as two,
    ):
        crystals, references = csv.writer(one), csv.writer(two)
        crystals.writerow(["material_id", "cif", "total"])
        references.writerow(["id", "formula", "formation_energy_per_atom", "scheme"])
        seen: set[str] = set()
        for name in ("mp_20_val", "mpts_52_val"):
            with gzip.open(data / f"mp/{name}.csv.gz", "rt", newline="") as file:
                for row in csv.DictReader(file):
                    if row["material_id"] in seen:
                        continue
                    seen.add(row["material_id"])
                    formula = Composition(re.search(r"_chemical_formula_sum\s+'?([^'\n]+)", row["cif"])[1])
                    fractions = formula.fractional_composition.get_el_amt_dict()
                    formation = float(row["formation_energy_per_atom"])
                    total = formation + sum(elements[symbol].energy * part for symbol, part in fractions.items())
                    crystals.writerow([row["material_id"], row["cif"], total])
                    references.writerow([row["material_id"], formula.reduced_formula, formation, SCHEME])


def skill(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> str:
    hits = int((found & true).sum())
    precision, recall = hits / max(1, found.sum()), hits / max(1, true.sum())
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return (
        f"{len(true):6,} crystals, {true.mean():6.1%} near the hull: precision {precision:.3f}, recall {recall:.3f}, "
        f"F1 {f1:.3f}"
    )


def main(data: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tables(data, folder)
        labels = LabelMapping().with_inline(["energy=total[eV/atom]"])
        graphs, references = folder / "g.zarr", folder / "references.csv"
        print(featurize(folder / "crystals.csv", graphs, labels=labels))
        words = {"references": [str(references)], "scheme": SCHEME}
        rank(graphs, folder / "out", relax=False, note=print, **words)
        scores = open_scores(folder / "out/hull.zarr").load()
        truth = hull(graphs, references, folder / "dft.hull.zarr", scheme=SCHEME).load()
    predicted, true = scores["energy_above_hull_unrelaxed"].values, truth["energy_above_hull"].values
    is_known = np.isfinite(predicted) & np.isfinite(true)
    kinds = np.array([chemistry(formula) for formula in scores["formula"].values])
    print(f"energy above hull: MAE {np.abs(predicted - true)[is_known].mean():.4f} eV/atom")
    for name in ("all", *sorted(set(kinds))):
        rows = is_known & ((kinds == name) | (name == "all"))
        print(f"{name:26}{skill(predicted[rows] < NEAR, true[rows] < NEAR)}")
    print(f"near: within {NEAR} eV/atom; the training data of 7net-0 hold most of these crystals")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
