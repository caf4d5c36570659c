"""Act one: import and export published weights, and rank intermetallics built on real prototypes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..export.exporter import export_onnx
from ..model.pretrained.load import import_weights
from ..pipeline import LabelMapping, featurize
from ..pipeline.store.dedup import Dedup
from ..screening import screen
from .acts import Act
from .intermetallics import RELATIVE_VOLUMES, write_intermetallics
from .phases import Phase, PhaseList, rank_phases
from .report import HULL, PAGE, SCORES, ActReport, Steps, write_page

WEIGHTS = "7net-0"
# Metals of superalloys and Heusler alloys, with many known compounds. PBE needs no corrections for metals, so formation
# energies can be taken from the model as they are.
METALS = ("Al", "Ti", "Co", "Ni")
SHOWN = 3
COLUMNS = ("strukturbericht", "relative_volume")


@dataclass(frozen=True, kw_only=True)
class PublishedReport(ActReport):
    """Report of act one; as text, its summary.

    Attributes:
        phases: The ranked phases.
    """

    phases: PhaseList

    def __str__(self) -> str:
        metadata = self.exported.metadata
        origin = metadata.origin
        low, high = RELATIVE_VOLUMES[0], RELATIVE_VOLUMES[-1]
        metals = ", ".join(self.phases.elements)
        elements = ", ".join(f"{metal} {phase.strukturbericht}" for metal, phase in self.phases.elements.items())
        return "\n".join(
            [
                "",
                f"equiscreen demo, act one: published weights rank intermetallics of {metals}.",
                f"The model is {origin['name']} ({origin['citation']}), trained on {origin['training_data']}; its "
                f"energies are {origin['functional']}, {metadata.energy_scheme}.",
                "",
                f"  candidates   {len(self.phases)} phases (a formula in a structure type), each at "
                f"{len(RELATIVE_VOLUMES)} volumes and in all site orders ({self.summary()})",
                *self.lines_on_scoring(),
                f"  elements     lowest energy in {elements}",
                "",
                f"  {'system':<10}{'rank':>4}  {'formula':<10}{'structure':<18}{'volume':>7}{'eV/atom':>10}"
                f"{'formation':>11}",
                *(
                    _row(system, place, phase)
                    for system, phases in self.phases.systems.items()
                    for place, phase in enumerate(phases[:SHOWN], start=1)
                    if len(system) > 1
                ),
                "  (formation: energy relative to the elements of this list, from the same model, eV/atom; volume: "
                "relative to the sum of the elemental volumes)",
                f"  Nothing is relaxed: shape and coordinates are the prototype's, and the volume is the best of "
                f"{low:.2f} to {high:.2f}{self._edge()}.",
                f"  Ranks, and the hull in {PAGE}, compare these candidates only; other known phases of these metals "
                "are not included.",
                *self.last_lines(
                    f"{WEIGHTS}.ckpt", f"{WEIGHTS}.onnx", "candidates.extxyz", "candidates.zarr", SCORES, HULL, PAGE
                ),
            ]
        )

    def _edge(self) -> str:
        count = self.phases.n_at_edge
        return f"; {count} phases have their lowest energy at an end of this range" if count else ""


def run_published(folder: Path, *, metals: Sequence[str] = METALS, scheduler: str | None = None) -> PublishedReport:
    """Run act one in a folder.

    Args:
        folder: An existing, empty folder.
        metals: Elements of the candidates.
        scheduler: Where the work runs; see `pipeline.runs.cluster.connect`.

    Raises:
        CheckpointError: The package that carries the weights is not installed.
    """
    clock = Steps(Act.PUBLISHED)
    checkpoint, model = folder / f"{WEIGHTS}.ckpt", folder / f"{WEIGHTS}.onnx"
    with clock.step("import"):
        import_weights(WEIGHTS, checkpoint)
    with clock.step("export"):
        exported = export_onnx(checkpoint, model)
    with clock.step("candidates"):
        write_intermetallics(folder / "candidates.extxyz", metals)
    with clock.step("featurize"):
        candidates = featurize(
            folder / "candidates.extxyz",
            folder / "candidates.zarr",
            cutoff=exported.metadata.cutoff,
            labels=LabelMapping(columns=COLUMNS),
            dedup=Dedup.CRYSTAL,  # AlNi and NiAl are the same crystal in some prototypes
            scheduler=scheduler,
            progress=True,
        )
    with clock.step("screen"):
        scores = screen(folder / "candidates.zarr", model, folder / SCORES, scheduler=scheduler, progress=True)
    with clock.step("report"):
        write_page(folder, f"Intermetallics of {', '.join(metals)}, ranked by {WEIGHTS}")
    return PublishedReport(
        out=folder,
        candidates=candidates,
        exported=exported,
        structures_per_second=float(scores.attrs["timing"]["structures_per_second"]),
        seconds=clock.seconds,
        phases=rank_phases(folder / "candidates.zarr", scores),
    )


def _row(system: Sequence[str], place: int, phase: Phase) -> str:
    name = "-".join(system) if place == 1 else ""
    return (
        f"  {name:<10}{place:>4}  {phase.formula:<10}{phase.strukturbericht:<18}{phase.relative_volume:>7.2f}"
        f"{phase.energy:>10.3f}{phase.formation_energy:>z11.3f}"
    )
