"""Act two: make alloys, featurize, train, export, screen, and compare the ranking with EMT's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..export.exporter import ExportReport, export_onnx
from ..model import Config, TrainingReport, train
from ..pipeline import FeaturizeReport, LabelMapping, featurize
from ..pipeline.labels.mapping import LabelRule
from ..pipeline.runs.cluster import connect, jobs_kept
from ..pipeline.runs.failure_policy import run_tasks
from ..pipeline.runs.progress import ProgressReport
from ..screening import hull, report, screen
from .acts import Act
from .alloys import METALS, AlloyTask, write_alloys, write_references
from .ranking import Ranking, compare, draw
from .report import ActReport, Steps

CUTOFF = 5.0
ALLOYS_PER_FILE = 250
TRAINING_SEED, CANDIDATE_SEED = 1, 2
NETWORK = {"hidden_irreps": "16x0e + 16x1o + 16x2e", "n_interactions": 2, "correlation": 2}
COLUMNS = ("prototype",)
SCORES, HULL, PAGE = "scores.zarr", "hull.zarr", "report.html"


@dataclass(frozen=True, kw_only=True)
class TrainedReport(ActReport):
    """Report of act two; as text, a summary.

    Attributes:
        training: Report of featurizing the training structures.
        candidates: Report of featurizing the candidates.
        model: Report of the training.
        exported: Report of the export.
        structures_per_second: Rate of the screen, structures/s.
        ranking: The model's ranking compared with EMT's.
    """

    training: FeaturizeReport
    candidates: FeaturizeReport
    model: TrainingReport
    exported: ExportReport
    structures_per_second: float
    ranking: Ranking

    def __str__(self) -> str:
        mae, r, found, parity = self.model.validation, self.ranking, self.candidates, self.exported.metadata.parity
        return "\n".join(
            [
                "",
                f"equiscreen demo, act two: a network learns alloys of {', '.join(METALS)} and ranks new ones.",
                "EMT, a classical potential in ASE, replaces DFT: it labels the training data and checks the ranking.",
                "",
                f"  structures   {self.training.stored:,} to train on, {found.stored:,} candidates (read "
                f"{found.read:,} = stored {found.stored:,} + failed {found.failed:,} + duplicate {found.duplicate:,})",
                f"  network      E(3)-equivariant, {NETWORK['hidden_irreps']}, {self.model.epochs} epochs",
                f"  validation   MAE energy {1e3 * mae['energy']:.1f} meV/atom, forces {1e3 * mae['forces']:.0f} "
                f"meV/angstrom, stress {1e3 * mae['stress']:.2f} meV/angstrom^3",
                f"  ONNX         {self.exported.nodes:,} nodes, {self.exported.size_bytes / 1e6:.2f} MB; largest "
                f"difference from PyTorch: energy {parity['energy/float32']:.0e} eV/atom, forces "
                f"{parity['forces/float32']:.0e} eV/angstrom, stress {parity['stress/float32']:.0e} eV/angstrom^3",
                f"  screen       {self.structures_per_second:,.0f} structures/s with energy, forces and stress, "
                "including the start of the workers",
                f"  ranking      formation energy against EMT's: MAE {1e3 * r.mae:.1f} meV/atom, Spearman "
                f"{r.spearman:.3f}; of EMT's best {r.n_top}, {r.n_shared} are among the model's best {r.n_top}",
                "",
                f"  {'rank':>4}  {'candidate':<18}{'formula':<12}{'prototype':<22}{'model':>10}{'EMT':>10}"
                f"{'EMT rank':>10}",
                *(
                    f"  {place:>4}  {row.structure_id:<18}{row.formula:<12}{row.prototype:<22}{row.predicted:>10.3f}"
                    f"{row.emt:>10.3f}{row.emt_rank:>10}"
                    for place, row in enumerate(r.best, start=1)
                ),
                "  (formation energies in eV/atom, unrelaxed)",
                *(
                    [f"  {r.left_out:,} candidates are not ranked, because their energies are not reliable"]
                    if r.left_out
                    else []
                ),
                *self.last_lines(
                    "training.zarr",
                    "candidates.zarr",
                    "run/model.ckpt",
                    "model.onnx",
                    SCORES,
                    HULL,
                    "ranking.png",
                    PAGE,
                ),
            ]
        )


@jobs_kept()
def run_trained(
    folder: Path,
    *,
    n_candidates: int,
    n_training: int,
    epochs: int,
    scheduler: str | None = None,
    progress: bool | None = None,
    note: Callable[[str], None],
) -> TrainedReport:
    """Run act two in a folder.

    Args:
        folder: An existing, empty folder.
        n_candidates: Number of new structures to screen.
        n_training: Number of structures to train on.
        epochs: Number of training epochs.
        scheduler: Where the work runs; see `pipeline.runs.cluster.connect`.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        note: Called with a line about each step.

    Raises:
        StoreError: No candidate can be ranked.
    """
    clock = Steps(Act.TRAIN, note)
    graphs, candidate_graphs, model_file = folder / "training.zarr", folder / "candidates.zarr", folder / "model.onnx"
    with clock.step("alloys"):
        training_files, candidate_files = _make_alloys(
            folder / "structures", n_training, n_candidates, scheduler, progress=progress
        )
    with clock.step("featurize"):
        training = featurize(training_files, graphs, cutoff=CUTOFF, scheduler=scheduler, progress=progress)
        truth = LabelMapping(labels={"energy": (LabelRule(path="emt_energy", unit="eV"),)}, columns=COLUMNS)
        candidates = featurize(
            candidate_files, candidate_graphs, cutoff=CUTOFF, labels=truth, scheduler=scheduler, progress=progress
        )
    with clock.step("train"):
        config = Config.parse({"network": NETWORK, "training": {"max_epochs": epochs}}, "demo")
        model = train(graphs, folder / "run", config, progress=progress)
    with clock.step("export"):
        exported = export_onnx(folder / "run", model_file)
    with clock.step("screen"):
        scores = screen(candidate_graphs, model_file, folder / SCORES, scheduler=scheduler, progress=progress)
    with clock.step("compare"):
        ranking = compare(candidate_graphs, scores)
        draw(ranking, folder / "ranking.png")
    with clock.step("report"):
        hull(folder / SCORES, out=folder / HULL, progress=progress)  # the candidates include each pure metal
        pictures = {
            "Errors during training": folder / "run/learning_curves.png",
            "Predictions of the network for validation structures": folder / "run/parity.png",
            "The ranking against EMT's": folder / "ranking.png",
        }
        report(folder / HULL, folder / PAGE, title="Alloys ranked by a newly trained network", pictures=pictures)
    return TrainedReport(
        act=Act.TRAIN,
        out=folder,
        candidates=candidates,
        exported=exported,
        structures_per_second=float(scores.attrs["timing"]["structures_per_second"]),
        seconds=clock.seconds,
        training=training,
        model=model,
        ranking=ranking,
    )


def _make_alloys(
    folder: Path, n_training: int, n_candidates: int, scheduler: str | None, *, progress: bool | None
) -> tuple[list[Path], list[Path]]:
    """Write all structures on the workers; returns the training files and the candidate files."""
    folder.mkdir()
    tasks: dict[bool, list[AlloyTask]] = {True: [], False: []}
    for teach, total, seed in ((True, n_training, TRAINING_SEED), (False, n_candidates, CANDIDATE_SEED)):
        for first in range(0, total, ALLOYS_PER_FILE):
            path = (folder / f"{'training' if teach else 'candidates'}-{first:06d}.extxyz").resolve()
            tasks[teach].append(AlloyTask(path, first, min(ALLOYS_PER_FILE, total - first), seed, teach))
    references = folder / "references.extxyz"
    write_references(references)
    with connect(scheduler) as client, ProgressReport("alloys", n_training + n_candidates, enabled=progress) as bar:
        for count in run_tasks(client, write_alloys, [*tasks[True], *tasks[False]]):
            bar.advance(count)
    names = {teach: [folder / task.path.name for task in some] for teach, some in tasks.items()}
    return names[True], [references, *names[False]]
