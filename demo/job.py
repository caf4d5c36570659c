"""The demo's job: make alloys, featurize, train, export, screen, and compare with the truth."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..export import screen
from ..export.exporting import ExportReport, export_onnx
from ..model import Config, TrainingReport, train
from ..pipeline import FeaturizeReport, LabelMapping, featurize
from ..pipeline.cluster import connect, run_tasks
from ..pipeline.errors import OutputExistsError
from ..pipeline.labels import LabelRule
from ..pipeline.progress import ProgressReport
from .alloys import AlloyTask, write_alloys, write_references
from .ranking import Ranking, compare, draw

CUTOFF = 5.0
ALLOYS_PER_FILE = 250
TRAINING_SEED, CANDIDATE_SEED = 1, 2
NETWORK = {"hidden_irreps": "16x0e + 16x1o + 16x2e", "n_interactions": 2, "correlation": 2}
COLUMNS = ("prototype",)


@dataclass(frozen=True)
class DemoReport:
    """What the demo ends with; as text, its summary.

    Attributes:
        out: Folder of everything.
        training: Account of the training structures.
        candidates: Account of the candidates.
        model: The trained model.
        exported: The ONNX file.
        structures_per_second: Of the screen.
        ranking: Compared with EMT's.
        seconds: By step.
    """

    out: Path
    training: FeaturizeReport
    candidates: FeaturizeReport
    model: TrainingReport
    exported: ExportReport
    structures_per_second: float
    ranking: Ranking
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        mae, parity = self.model.validation, self.exported.metadata.parity
        r = self.ranking
        lines = [
            "",
            "equiscreen demo: a network learns alloys of Al, Ni, Cu, Pd, Ag, Pt, Au and ranks new ones.",
            "The energies are those of ASE's EMT, a classical potential: teacher and judge of this demo, not DFT.",
            "",
            f"  structures   {self.training.stored:,} to train on, {self.candidates.stored:,} candidates "
            f"(read {self.candidates.read:,} = stored {self.candidates.stored:,} + failed {self.candidates.failed:,} + "
            f"duplicate {self.candidates.duplicate:,})",
            f"  network      E(3)-equivariant, {NETWORK['hidden_irreps']}, {self.model.epochs} epochs",
            f"  validation   MAE energy {1e3 * mae['energy']:.1f} meV/atom, forces {1e3 * mae['forces']:.0f} "
            f"meV/angstrom, stress {1e3 * mae['stress']:.2f} meV/angstrom^3",
            f"  ONNX         {self.exported.nodes} nodes, {self.exported.size_bytes / 1e3:.0f} kB; largest difference "
            f"from PyTorch: energy {parity['energy/float32']:.0e} eV/atom, forces {parity['forces/float32']:.0e} "
            f"eV/angstrom, stress {parity['stress/float32']:.0e} eV/angstrom^3",
            f"  screen       {self.structures_per_second:,.0f} structures/s with energy, forces and stress, "
            "start of the workers included",
            f"  ranking      formation energy against EMT's: MAE {1e3 * r.mae:.1f} meV/atom, Spearman "
            f"{r.spearman:.3f}; of EMT's best {r.n_top}, {r.n_shared} are among the model's best {r.n_top}",
            "",
            f"  {'rank':>4}  {'candidate':<18}{'formula':<12}{'prototype':<22}{'model':>10}{'EMT':>10}{'EMT rank':>10}",
        ]
        lines.extend(
            f"  {place:>4}  {row.structure_id:<18}{row.formula:<12}{row.prototype:<22}{row.predicted:>10.3f}"
            f"{row.emt:>10.3f}{row.emt_rank:>10}"
            for place, row in enumerate(r.best, start=1)
        )
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        lines += [
            "  (formation energies in eV/atom, unrelaxed)",
            "",
            f"  time         {sum(self.seconds.values()):.0f} s: {steps}",
            f"  left in      {self.out}: training.zarr, candidates.zarr, run/model.ckpt, model.onnx, scores.zarr, "
            "ranking.png",
        ]
        return "\n".join(lines)


def run_demo(
    out: str | Path,
    *,
    n_candidates: int = 5000,
    n_training: int = 1500,
    epochs: int = 40,
    overwrite: bool = False,
    scheduler: str | None = None,
) -> DemoReport:
    """Run the whole job in a folder.

    Args:
        out: Folder.
        n_candidates: New structures to screen.
        n_training: Structures to train on.
        epochs: Of training.
        overwrite: Replace the folder.
        scheduler: See `pipeline.cluster.connect`.

    Raises:
        OutputExistsError: The folder exists.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise OutputExistsError(f"{folder}: exists; choose another --out, or say --overwrite")
        if not (folder / "structures" / "references.extxyz").is_file():
            raise OutputExistsError(f"{folder}: exists and is no demo, so it is not overwritten")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    with _timed(seconds, "alloys"):
        training_files, candidate_files = _make_alloys(folder / "structures", n_training, n_candidates, scheduler)
    with _timed(seconds, "featurize"):
        training = featurize(
            training_files, folder / "training.zarr", cutoff=CUTOFF, scheduler=scheduler, progress=True
        )
        truth = LabelMapping(labels={"emt_energy": (LabelRule(path="emt_energy", unit="eV"),)}, columns=COLUMNS)
        candidates = featurize(
            candidate_files, folder / "candidates.zarr", cutoff=CUTOFF, labels=truth, scheduler=scheduler, progress=True
        )
    with _timed(seconds, "train"):
        config = Config.parse({"network": NETWORK, "training": {"max_epochs": epochs}}, "demo")
        model = train(folder / "training.zarr", folder / "run", config, progress=True)
    with _timed(seconds, "export"):
        exported = export_onnx(folder / "run", folder / "model.onnx")
    with _timed(seconds, "screen"):
        scores = screen(
            folder / "candidates.zarr",
            folder / "model.onnx",
            folder / "scores.zarr",
            scheduler=scheduler,
            progress=True,
        )
    with _timed(seconds, "compare"):
        ranking = compare(folder / "candidates.zarr", scores)
        draw(ranking, folder / "ranking.png")
    rate = float(scores.attrs["timing"]["structures_per_second"])
    return DemoReport(folder, training, candidates, model, exported, rate, ranking, seconds)


def _make_alloys(
    folder: Path, n_training: int, n_candidates: int, scheduler: str | None
) -> tuple[list[Path], list[Path]]:
    """Write all structures, on the workers; returns the files to train on, and those of the candidates."""
    folder.mkdir()
    tasks: dict[bool, list[AlloyTask]] = {True: [], False: []}
    for teach, total, seed in ((True, n_training, TRAINING_SEED), (False, n_candidates, CANDIDATE_SEED)):
        for first in range(0, total, ALLOYS_PER_FILE):
            path = (folder / f"{'training' if teach else 'candidates'}-{first:06d}.extxyz").resolve()
            tasks[teach].append(AlloyTask(path, first, min(ALLOYS_PER_FILE, total - first), seed, teach))
    references = folder / "references.extxyz"
    write_references(references)
    with connect(scheduler) as client, ProgressReport("alloys", n_training + n_candidates) as bar:
        for count in run_tasks(client, write_alloys, [*tasks[True], *tasks[False]]):
            bar.advance(count)
    names = {teach: [folder / task.path.name for task in some] for teach, some in tasks.items()}
    return names[True], [references, *names[False]]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin
