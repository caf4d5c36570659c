"""Act one: `rank` relaxes and ranks known crystals with published weights, and the result is compared with DFT.

`crystals.extxyz` beside this module holds the intermetallics of Al and the metals from Sc to Zn in the data set
`mp_20_val` (Xie et al., arXiv:2110.06197), with their ids and formation energies in the Materials Project (Jain et al.,
APL Mater. 1, 011002 (2013); CC BY 4.0). PBE energies of metals need no corrections.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from scipy.stats import spearmanr

from ..campaigns import rank
from ..screening import open_scores
from ..screening.dataset.paths import dataset_in
from ..screening.dataset.ranked_table import RankedTable
from ..screening.dataset.scores import OK
from .acts import Act
from .report import ActReport, Steps

CRYSTALS = Path(__file__).with_name("crystals.extxyz")
WEIGHTS = "7net-0"
RESULTS = "results"
_DFT = "materials_project_eV_per_atom"


@dataclass(frozen=True, kw_only=True)
class PublishedReport(ActReport):
    """Report of act one; as text, a summary.

    Attributes:
        crystals: Number of crystals.
        relaxed: Number of crystals whose relaxation has converged.
        mae: Mean absolute difference between the formation energies and those of the Materials Project, eV/atom.
        spearman: Spearman correlation between the two sets of formation energies.
        table: The best crystals, as text.
    """

    crystals: int
    relaxed: int
    mae: float
    spearman: float
    table: str

    def __str__(self) -> str:
        return "\n".join(
            [
                "",
                f"equiscreen demo, act one: {WEIGHTS}, trained on DFT by its authors, relaxes and ranks "
                f"{self.crystals} intermetallics of the Materials Project.",
                f"The act is one command: equiscreen rank {CRYSTALS.name} --out {RESULTS}",
                "",
                *(f"  {line}" for line in self.table.splitlines()),
                "",
                f"  relaxed      {self.relaxed} of {self.crystals}",
                f"  DFT          formation energies of the Materials Project: MAE {1e3 * self.mae:.0f} meV/atom, "
                f"Spearman {self.spearman:.3f} ({WEIGHTS} was trained on crystals like these)",
                *self.last_lines(CRYSTALS.name, f"{RESULTS}/report.html", f"{RESULTS}/best"),
            ]
        )


def run_published(
    folder: Path, *, scheduler: str | None = None, progress: bool | None = None, note: Callable[[str], None]
) -> PublishedReport:
    """Run act one in a folder.

    Args:
        folder: An existing, empty folder.
        scheduler: Where the work runs; see `pipeline.runs.cluster.connect`.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        note: Called with a line about each step.

    Raises:
        CheckpointError: The weights are not available: neither `sevenn` nor `equiscreen-models` is installed, and the
            cache does not hold the model.
    """
    clock = Steps(Act.PUBLISHED, note)
    crystals = folder / CRYSTALS.name
    shutil.copyfile(CRYSTALS, crystals)
    with clock.step("rank"):
        best = rank(crystals, folder / RESULTS, model=WEIGHTS, scheduler=scheduler, progress=progress, note=note)
    found = open_scores(dataset_in(folder / RESULTS))
    dft = {atoms.info["structure_id"]: atoms.info[_DFT] for atoms in ase.io.read(crystals, index=":")}
    expected = np.array([dft[str(name)] for name in found["structure_id"].values])
    energy = found["formation_energy_per_atom"].values
    known = np.isfinite(energy)
    return PublishedReport(
        act=Act.PUBLISHED,
        out=folder,
        seconds=clock.seconds,
        crystals=len(dft),
        relaxed=int((found["status"].values == OK).sum()),
        mae=float(np.abs(energy - expected)[known].mean()),
        spearman=float(spearmanr(energy[known], expected[known]).statistic),
        table=RankedTable(best).text(),
    )
