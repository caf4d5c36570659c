"""One command on real crystals: time of `equiscreen rank`, and its formation energies against the Materials Project's.

    python tests/benchmarks/rank.py DATA_FOLDER [COUNT]

Ranks the first COUNT crystals (300 by default) of mp_20_val.csv.gz with and without relaxation. Prints the text of
`rank.txt`.
"""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from equiscreen.screening import open_scores


def main(data: Path, count: int) -> None:
    source = data / "mp/mp_20_val.csv.gz"
    with gzip.open(source, "rt", newline="") as file:
        published = {row["material_id"]: float(row["formation_energy_per_atom"]) for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as scratch:
        for option in ("--relax", "--no-relax"):
            out = Path(scratch) / option
            command = [sys.executable, "-m", "equiscreen", "rank", str(source), "--limit", str(count), option]
            begin = time.monotonic()
            subprocess.run([*command, "--out", str(out), "--quiet"], check=True)
            seconds = time.monotonic() - begin
            scores = open_scores(out / "hull.zarr").load()
            name = "formation_energy_per_atom" + ("" if option == "--relax" else "_unrelaxed")
            expected = np.array([published[str(one)] for one in scores["structure_id"].values])
            error = np.abs(scores[name].values - expected)
            is_known = np.isfinite(error)
            counts = {word: n for word, n in scores.attrs["status_counts"].items() if n}
            print(
                f"rank {option}: {len(expected)} crystals in {seconds:.0f} s; statuses {counts}; formation energy of "
                f"{int(is_known.sum())}: MAE {error[is_known].mean():.4f}, median {np.median(error[is_known]):.4f}, "
                f"largest {error[is_known].max():.3f} eV/atom"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300)
