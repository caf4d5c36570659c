"""Distill a large model into a small one: label, train, export and compare, in one resumable folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...export.runtime.onnx_potential import OnnxPotential, check_cutoff, check_gradients
from ...export.runtime.providers import CPU, device_kind, local_gpus
from ...pipeline.errors import ConfigError
from ...pipeline.provenance import recorded_path
from ...pipeline.runs.cluster import jobs_kept
from ...pipeline.runs.options import RunOptions
from ...pipeline.runs.progress import shows_progress
from ...pipeline.runs.steps_folder import StepsFolder
from ...pipeline.sources.discovery import Paths, is_server, path_names, server_name
from ...pipeline.store.graph_store import GraphStore
from ...screening.candidate_graphs import graph_store_of, prepare_graphs
from ...screening.dataset.paths import graphs_path
from ...screening.dataset.subset import write_graph_subset
from ..models.resolve import model_file
from .evaluation import comparable_crystals, held_out_errors, not_comparable, rates
from .labelling import (
    check_groups,
    chosen_rows,
    label_crystals,
    label_statuses,
    labelling_model,
    same_crystals,
    summary,
)
from .report import DistillReport, Subset
from .settings import CRYSTAL, DistillSettings

if TYPE_CHECKING:
    from ...model.config.config import Config
    from ...model.data.splits import Split

CANDIDATES, CHOSEN, LABELLED = "candidates.zarr", "crystals.zarr", "labelled.zarr"
RUN, STUDENT, REPORT = "run", "student.onnx", "report.json"
_FOLDER = StepsFolder(
    noun="distillation",
    differences={
        "sources": "other crystals",
        "teacher": "another teacher",
        "equiscreen": "another version of equiscreen",
    },
    outputs=(graphs_path(CANDIDATES), CHOSEN, "crystals.parts", "crystals.partial", LABELLED, RUN, STUDENT, REPORT),
    first_use={
        "variants": (CHOSEN, LABELLED),
        **dict.fromkeys(("graph_cutoff", "device"), (LABELLED,)),
        **dict.fromkeys(("network", "training"), (RUN,)),
    },
)

Note = Callable[[str], None]


@jobs_kept()
def distill(
    sources: Paths,
    out: str | Path,
    teacher: str | Path = "7net-0",
    settings: DistillSettings | None = None,
    *,
    device: str = CPU,
    allow_mixed_devices: bool = False,
    scheduler: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    note: Note = lambda text: None,  # noqa: ARG005
) -> DistillReport:
    """Train a small, fast network on the predictions of a large one for crystals of one chemistry.

    Rattled and strained variants of the crystals, and on request frames of short relaxations, are labelled with the
    teacher's energies, forces and stresses. A student is trained on them and exported to ``student.onnx``. Some
    crystals are held out with all their variants; the report compares student and teacher on them. The energies of the
    student follow the energy scheme of its teacher, and its metadata name the teacher.

    The folder holds the output of each step. To resume an interrupted distillation, call the function again with the
    same arguments.

    Example:
        >>> from equiscreen.campaigns import DistillSettings, distill
        >>> from equiscreen.campaigns.distillation.settings import VariantSettings
        >>> settings = DistillSettings(VariantSettings(variants=3), config="quick.yaml")
        >>> report = distill("candidates.zarr", "student", "model.onnx", settings, scheduler="threads")
        >>> report.counts["read"], report.held_out.crystals
        (16, 1)

    Args:
        sources: Structure files in any supported format; or one graph store or scores dataset, whose crystals are used.
        out: Folder to write.
        teacher: Name of published weights, ONNX file, checkpoint or run folder; see `campaigns.model_file`.
        settings: Structures to label, and the student; None uses the defaults.
        device: Device on which the teacher labels structures; see `export.runtime.providers.providers`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`. The student is trained in this process.
        overwrite: Delete the distillation in the folder and start again.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        note: Called with a message about each step.

    Returns:
        The account of all structures, and the errors and the speed of the student.

    Raises:
        ConfigError: A setting is invalid, the student's cutoff exceeds the cutoff of the crystals' graphs, or there
            are too few different crystals, or too few that share their elements.
        ModelFileError: The teacher is unknown or cannot be used, lacks energy, forces or stress, or its cutoff exceeds
            the cutoff of the crystals' graphs.
        CheckpointError: The teacher is a checkpoint that is damaged or unfinished.
        UnreachableError: The weights of the teacher cannot be downloaded.
        SourceError: A file does not exist, or holds no structure that can be read.
        StoreError: A store cannot be read or changed during the run.
        DeviceError: The device does not exist here, or on a worker.
        OutputExistsError: The folder holds a distillation with other settings, something else, or an input.
        EquiscreenError: The training failed; see `equiscreen.model.train`.
        ExportError: A check of the exported student, or of a teacher that was exported first, failed.
    """
    begin = time.monotonic()
    chosen, named, folder = settings or DistillSettings(), path_names(sources), Path(out)
    model = model_file(teacher, progress=shows_progress(progress), note=note)
    potential = OnnxPotential.load(model, threads=1)
    check_gradients(potential, model, "a distillation needs")
    gpus = local_gpus(device, scheduler)
    config = _config(chosen, potential)
    store = graph_store_of(named)
    graphs = None if store is None else GraphStore(store)
    if graphs is not None:
        check_cutoff(graphs, potential, model)
        _check_student_cutoff(config, graphs.cutoff, str(graphs.path))
    else:
        _check_student_cutoff(
            config, potential.cutoff, "the files' graph store, which is made with the teacher's cutoff"
        )
    plan = {
        "sources": graphs.store_hash if graphs is not None else [_recorded(name, folder) for name in named],
        "teacher": potential.sha256,
        "variants": chosen.about_variants(),
        "graph_cutoff": _graph_cutoff(config, potential),
        "device": device_kind(device),
        **config.model_dump(mode="json"),
        "equiscreen": version("equiscreen"),
    }
    inputs = [*([store] if store is not None else named), model, *([chosen.config] if chosen.config else [])]
    options = RunOptions(
        scheduler=scheduler,
        progress=progress,
        device=device,
        gpus=gpus,
        allow_mixed_devices=allow_mixed_devices,
    )
    with _FOLDER.opened(folder, plan, inputs, overwrite=overwrite):
        if (folder / REPORT).exists():
            return DistillReport.load(folder / REPORT)
        steps = _Steps(folder, model, potential, chosen, config, options, note)
        steps.crystals(named, graphs)
        steps.label()
        steps.train()
        steps.export()
        report = steps.compare(begin)
        report.save(folder / REPORT)
    return report


class _Steps:
    """The steps of a distillation. A step is finished if its output exists, since outputs appear only when complete."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        potential: OnnxPotential,
        settings: DistillSettings,
        config: Config,
        options: RunOptions,
        note: Note,
    ) -> None:
        self.folder, self.model, self.potential = folder, model, potential
        self.settings, self.config, self.options, self.note = settings, config, options, note
        self.graphs: GraphStore

    def crystals(self, named: list[str], graphs: GraphStore | None) -> None:
        """Featurize the files, if the source is not a store, and choose some of the crystals, if not all are used."""
        if graphs is None:
            prepared = prepare_graphs(named, self.model, self.folder / CANDIDATES, self.options)
            self.note(prepared.summary)
            graphs = GraphStore(prepared.path)
        rows = chosen_rows(len(graphs), self.settings.crystals, self.settings.variants.seed)
        if rows is not None:
            if not (self.folder / CHOSEN).exists():
                write_graph_subset(self.folder / CHOSEN, graphs, rows)
            graphs = GraphStore(self.folder / CHOSEN)
        self.graphs = graphs

    def label(self) -> None:
        """Make the variants, and label them with the teacher."""
        out = self.folder / LABELLED
        if not out.exists():
            groups = same_crystals(self.graphs)
            check_groups(self.graphs, self.potential, groups, self.settings.hold_out_by)
            cutoff, variants = _graph_cutoff(self.config, self.potential), self.settings.variants
            label_crystals(self.graphs, self.model, self.potential, out, variants, groups, cutoff, self.options)
        self.note(f"{out}: {summary(self.labelled.attrs['counts'], label_statuses(self.labelled))}")

    @cached_property
    def labelled(self) -> GraphStore:
        """The store of labelled structures."""
        return GraphStore(self.folder / LABELLED)

    def train(self) -> None:
        """Train the student."""
        from ...model.checkpoint import MODEL_FILE  # noqa: PLC0415 - imports torch
        from ...model.training.train import train  # noqa: PLC0415 - imports torch

        if not (self.folder / RUN / MODEL_FILE).exists():
            _check_hold_out(self.labelled, self.config)
            self.note(
                str(train(self.folder / LABELLED, self.folder / RUN, self.config, progress=self.options.progress))
            )

    def export(self) -> None:
        """Export the student."""
        from ...export.exporter import export_onnx  # noqa: PLC0415 - imports torch

        if not (self.folder / STUDENT).exists():
            self.note(str(export_onnx(self.folder / RUN, self.folder / STUDENT, note=self.note)))

    def compare(self, begin: float) -> DistillReport:
        """Compare student and teacher on the held-out crystals.

        Args:
            begin: Reading of the monotonic clock at the start of the call, seconds.
        """
        from ...model.data.splits import Split  # noqa: PLC0415 - imports torch

        student = OnnxPotential.load(self.folder / STUDENT, threads=1)
        split = Split.load(self.folder / RUN / "split.npz", [self.labelled])
        (held_out,) = split.test
        errors, of_variants = held_out_errors(self.labelled, held_out, student)
        # On the CPU even if the labels came from a GPU: the rates are measured on one core.
        speed = rates(self.labelled, held_out, OnnxPotential.load(self.model, threads=1), student)
        teacher = labelling_model(self.model, self.potential)
        parts = self._parts(split)
        return DistillReport(
            model=str(self.folder / STUDENT),
            teacher=teacher.name,
            teacher_sha256=teacher.sha256,
            energy_scheme=student.metadata.energy_scheme,
            counts=self.labelled.attrs["counts"],
            label_statuses=label_statuses(self.labelled),
            training=parts["training"],
            validation=parts["validation"],
            held_out=parts["test"],
            hold_out_by=self.settings.hold_out_by,
            errors=errors,
            variant_errors=of_variants,
            rates=speed,
            seconds=time.monotonic() - begin,
        )

    def _parts(self, split: Split) -> dict[str, Subset]:
        crystals = self.labelled.column(CRYSTAL)

        def of(chosen: tuple[NDArray[np.bool_], ...]) -> Subset:
            (rows,) = chosen
            return Subset(len(set(crystals[rows].tolist())), int(rows.sum()))

        return {name: of(getattr(split, name)) for name in ("training", "validation", "test")}


def _config(settings: DistillSettings, potential: OnnxPotential) -> Config:
    """Return the configuration of the student.

    Raises:
        ConfigError: The configuration file is invalid, or the network predicts no energy.
    """
    from ...model.config.config import Config  # noqa: PLC0415 - only this function needs it

    config = Config.parse(settings.training_config(potential.cutoff), str(settings.config or "the student"))
    if not config.network.energy:
        raise ConfigError(f"{settings.config}: network.energy is false, but a student learns energies; remove this key")
    return config


def _check_hold_out(labelled: GraphStore, config: Config) -> None:
    """Check, before the training, that the student covers crystals to validate on and crystals to compare.

    Raises:
        ConfigError: No validation structure, or no held-out crystal, has labels and only elements that are trained on.
    """
    from ...model.data.batches import compositions, of_elements  # noqa: PLC0415 - imports torch
    from ...model.data.splits import split_structures  # noqa: PLC0415 - imports torch
    from ...model.data.targets import head_labels, usable_structures  # noqa: PLC0415 - imports torch
    from ...model.training.setup import without_isolated_atoms  # noqa: PLC0415 - imports torch

    stores = [labelled]
    usable = usable_structures(stores, energy=True, heads=head_labels(stores, config.network.heads))
    bound, _ = without_isolated_atoms(stores, usable, config.network.cutoff or labelled.cutoff)
    split = split_structures(stores, bound, config.training.split)
    (training,), (validation,), (held_out,) = split.training, split.validation, split.test
    per_structure = np.concatenate([counts > 0 for counts in compositions(labelled)])
    covered = of_elements(labelled, np.flatnonzero(per_structure[training].any(axis=0)).tolist())
    if not (validation & covered).any():
        raise not_comparable(labelled)
    comparable_crystals(labelled, held_out & covered)


def _graph_cutoff(config: Config, potential: OnnxPotential) -> float:
    """Return the cutoff of the graphs of the labelled structures, which both models use, angstrom."""
    return max(potential.cutoff, config.network.cutoff or 0.0)


def _check_student_cutoff(config: Config, available: float, where: str) -> None:
    """Check that the student can screen the crystals' graphs.

    Raises:
        ConfigError: The cutoff of the student is larger than the cutoff of the graphs.
    """
    wanted = config.network.cutoff or available
    if wanted > available:
        raise ConfigError(
            f"the student's cutoff is {wanted:g} angstrom, larger than the {available:g} of {where}; lower --cutoff, "
            f"or distill a store from `equiscreen featurize SOURCE... --cutoff {wanted:g} --out NEW.zarr`"
        )


def _recorded(source: str, folder: Path) -> Any:
    """Return the name under which the plan records a source file or server."""
    return server_name(source) if is_server(source) else recorded_path(source, folder / _FOLDER.plan_file)
