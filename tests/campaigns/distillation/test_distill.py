"""Distillation: every structure is accounted for, no held-out crystal is trained on, students name their teacher."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from dask import config as dask_config
from distributed import LocalCluster
from equiscreen.campaigns import DistillReport, DistillSettings, distill
from equiscreen.campaigns.distillation import labelling
from equiscreen.campaigns.distillation.distill import LABELLED, REPORT, RUN, STUDENT
from equiscreen.campaigns.distillation.estimate import estimate
from equiscreen.campaigns.distillation.settings import CRYSTAL, LABEL_STATUS, VARIANT, HoldOutBy, VariantSettings
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint
from equiscreen.model.data.splits import Split
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.errors import ConfigError, EquiscreenError, ModelFileError, OutputExistsError
from equiscreen.pipeline.runs.options import RunOptions
from equiscreen.pipeline.store.labelling_model import LabellingModel
from equiscreen.pipeline.store.tables import DUPLICATES_FILE, FAILURES_FILE
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import hull, screen
from equiscreen.screening.chemistry.composition import formulas

from ...conftest import CUTOFF, ELEMENTS, traced_once, write_extxyz
from ...export.runtime.altered_models import altered
from ...screening.relaxation.test_interrupted import evaluation_that_dies_of_gold

NETWORK = "{hidden_irreps: 4x0e + 2x1o, n_interactions: 1, n_radial: 4, radial_hidden: 8}"
SILVER = 47
CRYSTALS, VARIANTS, FRAMES = 9, 2, 1
TEACHER = {"name": "big", "functional": "PBE", "training_data": "crystals", "licence": "MIT"}


@dataclass(frozen=True)
class Made:
    """A finished distillation, and what it was made from."""

    source: Path
    teacher: Path
    settings: DistillSettings
    out: Path
    report: DistillReport

    def again(self, **changes: Any) -> DistillReport:
        given = {"sources": self.source, "out": self.out, "teacher": self.teacher, "settings": self.settings}
        return distill(**{**given, **changes}, scheduler="threads")


@pytest.fixture(scope="module")
def made(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("distilled")
    source = write_extxyz(folder / "c.extxyz", CRYSTALS, seed=12)
    images = ase.io.read(source, ":")
    images[4].symbols[0] = "Ag"  # the teacher does not cover silver
    images.append(images[0])  # featurize drops it
    ase.io.write(source, images, format="extxyz")
    teacher = altered(exported("float32"), folder / "teacher.onnx", energy_scheme="own", origin=TEACHER)
    (folder / "quick.yaml").write_text(f"network: {NETWORK}\ntraining: {{max_epochs: 2, threads: 1}}\n")
    settings = DistillSettings(VariantSettings(VARIANTS, frames=FRAMES), config=folder / "quick.yaml", hold_out=0.25)
    featurize(source, folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    with traced_once():
        report = distill(folder / "g.zarr", folder / "student", teacher, settings, scheduler="threads")
    return Made(folder / "g.zarr", teacher, settings, folder / "student", report)


def test_every_structure_is_accounted_for_and_labelled_by_the_teacher(made: Made) -> None:
    labelled, crystals = GraphStore(made.out / LABELLED), GraphStore(made.source)
    counts = labelled.attrs["counts"]
    assert counts == made.report.counts
    assert counts["read"] == counts["stored"] + counts["failed"] + counts["duplicate"]
    assert counts["stored"] == len(labelled) == sum(made.report.label_statuses.values())
    assert (labelled.table(FAILURES_FILE).num_rows, labelled.table(DUPLICATES_FILE).num_rows) == (
        counts["failed"],
        counts["duplicate"],
    )
    assert counts["read"] == len(crystals) + (len(crystals) - 1) * (VARIANTS + FRAMES)
    kinds, statuses = labelled.column(VARIANT), labelled.column(LABEL_STATUS)
    given = np.flatnonzero(kinds == "crystal")
    assert labelled.column("structure_id")[given].tolist() == crystals.column("structure_id").tolist()
    assert labelled.column("structure_hash")[given].tolist() == crystals.column("structure_hash").tolist()
    block = labelled.block(0, len(labelled))
    silver = np.isin(np.arange(len(block)), block.atom_structure[block.atomic_number == SILVER])
    assert silver.sum() == 1  # no variants of it
    assert (statuses[silver] == "unknown_element").all()
    ok = statuses == "ok"
    assert made.report.label_statuses["ok"] == ok.sum() > 0
    assert (np.isfinite(block.structure_labels["energy"]) == ok).all()
    found = OnnxPotential.load(made.teacher, threads=1).evaluate(block.take(np.flatnonzero(ok)))
    known = block.take(np.flatnonzero(ok))
    assert np.array_equal(found.energy, known.structure_labels["energy"])  # the same bits, in any batch
    assert np.array_equal(found.forces, known.atom_labels["forces"])
    assert np.array_equal(found.stress, known.structure_labels["stress"])


def test_no_variant_of_a_held_out_crystal_is_trained_on(made: Made) -> None:
    labelled = GraphStore(made.out / LABELLED)
    split = Split.load(made.out / RUN / "split.npz", [labelled])
    names = formulas(labelled.block(0, len(labelled)))
    parts = [getattr(split, part)[0] for part in ("training", "validation", "test")]
    for values in (names, labelled.column(CRYSTAL)):
        each = [set(values[part].tolist()) for part in parts]
        assert all(each)
        assert sum(map(len, each)) == len(set().union(*each))  # disjoint
    (held_out,) = split.test
    assert made.report.held_out.structures == held_out.sum()
    crystals = labelled.block(0, len(labelled)).take(np.flatnonzero(held_out & (labelled.column(VARIANT) == "crystal")))
    student = OnnxPotential.load(made.out / STUDENT, threads=1).evaluate(crystals)
    wrong = (student.energy - crystals.structure_labels["energy"]) / crystals.n_atoms
    assert made.report.errors.structures == len(crystals)
    assert made.report.errors.energy_mae == pytest.approx(np.abs(wrong).mean())
    assert made.report.rates.ratio > 0
    assert "held out by composition" in str(made.report)


def test_the_student_names_its_teacher_and_follows_its_energy_scheme(made: Made, tmp_path: Path) -> None:
    teacher, student = (OnnxPotential.load(path, threads=1) for path in (made.teacher, made.out / STUDENT))
    _, card = load_checkpoint(made.out / RUN / "model.ckpt")
    for metadata in (card, student.metadata):
        assert metadata.energy_scheme == teacher.metadata.energy_scheme
        assert metadata.origin["distilled_from"] == "big"
        assert metadata.origin["teacher_sha256"] == teacher.sha256
        assert (metadata.origin["functional"], metadata.origin["licence"]) == ("PBE", "MIT")
    assert GraphStore(made.out / LABELLED).store_hash in student.metadata.training_data
    assert student.metadata.energy_basis == teacher.metadata.weights_sha256
    # The scheme `own` has as many zeros of energy as there are models: the teacher's energies fit, others do not.
    other = altered(made.teacher, tmp_path / "other.onnx", weights_sha256="0" * 64)
    for name, model in {"t": made.teacher, "s": made.out / STUDENT, "o": other}.items():
        screen(made.source, model, tmp_path / f"{name}.zarr", scheduler="threads", limit=2)
    found = hull(tmp_path / "s.zarr", [tmp_path / "t.zarr"], tmp_path / "h.zarr")
    assert found.attrs["hull"]["references"][0]["entries"] > 0
    assert found.attrs["model"]["distilled_from"] == "big"
    with pytest.raises(ConfigError, match="come from another model"):
        hull(tmp_path / "s.zarr", [tmp_path / "o.zarr"], tmp_path / "refused.zarr")


def test_a_finished_distillation_is_reported_again_and_never_mixed_with_another(made: Made, tmp_path: Path) -> None:
    assert made.again() == made.report
    other = altered(made.teacher, tmp_path / "other.onnx", equiscreen="0")
    with pytest.raises(OutputExistsError, match=r"holds a distillation with another teacher; .*--out"):
        made.again(teacher=other)
    more = replace(made.settings, variants=VariantSettings(VARIANTS + 1, frames=FRAMES))
    with pytest.raises(OutputExistsError, match=f"variants {VARIANTS} instead of {VARIANTS + 1}"):
        made.again(settings=more)
    with pytest.raises(OutputExistsError, match="max_epochs 2 instead of 3"):
        made.again(settings=replace(made.settings, epochs=3))
    assert str(made.out) not in json.dumps(GraphStore(made.out / LABELLED).attrs["inputs"])


class Stopped(Exception):  # noqa: N818 - stands for a signal
    pass


def test_an_interrupted_distillation_resumes_with_the_same_labels(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, resumed = tmp_path / "student", list[int]()
    label = StoreRun.make_parts

    def stop_after_two(run: StoreRun, function: Any, tasks: Any, *others: Any) -> Any:
        few = [task for _, task in zip(range(2), tasks, strict=False)]
        assert len(label(run, function, few, *others)) == 2
        raise Stopped

    def note_resumed(run: StoreRun, *arguments: Any) -> Any:
        resumed.append(len(run.resumed))
        return label(run, *arguments)

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    monkeypatch.setattr(labelling, "PART_EDGES", 1)
    monkeypatch.setattr("equiscreen.model.training.train.train", stop)
    monkeypatch.setattr(StoreRun, "make_parts", stop_after_two)
    with pytest.raises(Stopped):
        made.again(out=out)
    with pytest.raises(OutputExistsError, match="another teacher"):
        made.again(out=out, teacher=altered(made.teacher, tmp_path / "other.onnx", equiscreen="0"))
    monkeypatch.setattr(StoreRun, "make_parts", note_resumed)
    with pytest.raises(Stopped):
        made.again(out=out)
    assert resumed == [2]
    assert GraphStore(out / LABELLED).store_hash == GraphStore(made.out / LABELLED).store_hash
    # The settings of the training may still be corrected, and the labels are kept.
    with pytest.raises(Stopped):
        made.again(out=out, settings=replace(made.settings, epochs=3))
    assert resumed == [2]
    (out / REPORT).write_text("{")
    with pytest.raises(EquiscreenError, match=r"report.json is damaged; delete it"):
        made.again(out=out, settings=replace(made.settings, epochs=3))


def test_labels_of_several_teachers_have_no_scheme(made: Made) -> None:
    labelled, plain = GraphStore(made.out / LABELLED), GraphStore(made.source)
    known = LabellingModel.of_stores([labelled, labelled])
    assert known is not None
    assert known.energy_scheme == "own"
    assert LabellingModel.of_stores([labelled, plain]) is None
    assert LabellingModel.of_stores([plain]) is None


def test_bad_input_is_refused_before_any_work(made: Made, tmp_path: Path) -> None:
    new = {"out": tmp_path / "new"}
    energy_only = altered(
        made.teacher, tmp_path / "e.onnx", outputs=[{"name": "energy", "per": "structure", "shape": [], "unit": "eV"}]
    )
    with pytest.raises(
        ModelFileError, match=r"e.onnx: a distillation needs forces, stress, which .*--outputs energy,forces"
    ):
        made.again(**new, teacher=energy_only)
    with pytest.raises(ConfigError, match=r"student's cutoff is 6 angstrom, larger than the 4.5 of .*g.zarr; lower"):
        made.again(**new, settings=replace(made.settings, cutoff=6.0))
    with pytest.raises(ConfigError, match="preset"):
        made.again(**new, settings=replace(made.settings, preset="tiny"))
    (tmp_path / "split.yaml").write_text("training: {split: {by: structure}}")
    with pytest.raises(ConfigError, match=r"split.yaml: training.split cannot be set.*--hold-out-by"):
        made.again(**new, settings=replace(made.settings, config=tmp_path / "split.yaml"))
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        made.again(**new, settings=replace(made.settings, config=tmp_path / "none.yaml"))
    for size in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="out of range"):
            VariantSettings(rattle=size)
    with pytest.raises(ConfigError, match="all variants of a crystal are equal"):
        VariantSettings(rattle=0.0, strain=0.0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("by", HoldOutBy)
def test_too_few_crystals_are_refused(made: Made, tmp_path: Path, by: HoldOutBy) -> None:
    (first,) = probe_structures(ELEMENTS, 1, seed=5)
    # One crystal in two cells, or three polymorphs of one composition.
    cells = [first, Structure.from_fractional(first.atomic_number, first.cell, first.frac_coord + 0.1)]
    crystals = (
        cells
        if by is HoldOutBy.STRUCTURE
        else [
            Structure.from_fractional(first.atomic_number, scale * first.cell, first.frac_coord)
            for scale in (1, 1.05, 1.1)
        ]
    )
    ase.io.write(tmp_path / "few.extxyz", [one.to_ase() for one in crystals], format="extxyz")
    settings = replace(made.settings, hold_out_by=by)
    expected = {
        HoldOutBy.STRUCTURE: "at least 3 different crystals .* covers only 1 in this store; add crystals",
        HoldOutBy.COMPOSITION: "at least 3 compositions .* but this store holds 1; use --hold-out-by structure",
    }
    with pytest.raises(ConfigError, match=expected[by]):
        made.again(sources=tmp_path / "few.extxyz", out=tmp_path / "few", settings=settings)


def test_crystals_that_share_no_element_are_refused_before_the_training(made: Made, tmp_path: Path) -> None:
    """Whichever of them are held out, the student would not know their elements."""
    images = [bulk(symbol) for symbol in ("Al", "Cu", "Au")]
    ase.io.write(tmp_path / "c.extxyz", images, format="extxyz")
    with pytest.raises(ConfigError, match=r"labelled.zarr: no held-out crystal .* at least 3 crystals .* with --seed"):
        made.again(sources=tmp_path / "c.extxyz", out=tmp_path / "out")
    assert (tmp_path / "out" / LABELLED).exists()
    assert not (tmp_path / "out" / RUN).exists()
    # An estimate from crystals that the teacher does not cover has no time.
    ase.io.write(tmp_path / "silver.extxyz", [bulk("Ag")], format="extxyz")
    found = estimate(tmp_path / "silver.extxyz", made.teacher, made.settings)
    assert np.isnan(found.seconds)
    assert "an unknown time to label them, since the teacher covers no crystal of the sample" in str(found)


def test_an_estimate_counts_the_structures(made: Made) -> None:
    store = GraphStore(made.source)
    for sources, crystals in ((made.source, None), (made.source, 4), (made.source.with_name("c.extxyz"), None)):
        found = estimate(sources, made.teacher, replace(made.settings, crystals=crystals))
        assert found.crystals == (crystals or len(store))
        assert found.structures == found.crystals * (1 + VARIANTS + FRAMES)
        assert 0 < found.seconds < 60
        assert found.bytes_on_disk > 8 * found.structures
    assert found.structures >= made.report.counts["read"]


def test_the_command_takes_the_same_settings(
    made: Made, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = ("distill", made.source, "--teacher", made.teacher, "--out", tmp_path / "new", "--scheduler", "threads")
    sizes = ("--variants", VARIANTS, "--frames", FRAMES, "--crystals", 5)
    told = command_line(*words, *sizes, "--estimate").stdout
    assert told.startswith(f"5 crystals, at most {5 * (1 + VARIANTS + FRAMES)} structures: about ")
    refused = command_line(*words, "--cutoff", 6)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("equiscreen: the student's cutoff is 6 angstrom, larger")
    again = ("--config", made.settings.config, "--hold-out", "0.25", *sizes[:4])
    finished = command_line(*words[:4], "--out", made.out, *again, "--json")
    assert json.loads(finished.stdout)["errors"]["energy_mae"] == made.report.errors.energy_mae


def test_polymorphs_are_held_out_by_structure(made: Made) -> None:
    config = replace(made.settings, hold_out_by=HoldOutBy.STRUCTURE).training_config(CUTOFF)
    assert config["training"]["split"] == {"by": "group", "key": CRYSTAL, "test": 0.25, "validation": 0.25, "seed": 0}
    groups = labelling.same_crystals(GraphStore(made.source))
    assert groups == list(range(len(groups)))


def test_a_sample_of_the_crystals_is_labelled(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    monkeypatch.setattr("equiscreen.model.training.train.train", stop)
    settings = replace(made.settings, crystals=5, variants=VariantSettings(0))
    with pytest.raises(Stopped):
        made.again(out=tmp_path / "some", settings=settings)
    chosen, every = GraphStore(tmp_path / "some/crystals.zarr"), GraphStore(made.source)
    names = chosen.column("structure_id").tolist()
    assert len(names) == 5
    assert set(names) < set(every.column("structure_id").tolist())
    assert len(GraphStore(tmp_path / "some" / LABELLED)) == 5
    shutil.rmtree(tmp_path / "some")


@pytest.mark.slow
def test_a_crystal_that_kills_its_worker_costs_only_itself(exported: Callable[[str], Path], tmp_path: Path) -> None:
    images = [one.to_ase() for one in probe_structures((13, 29), 4, seed=8)]
    images[1].symbols[0] = "Au"
    ase.io.write(tmp_path / "c.extxyz", images, format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    graphs, teacher = GraphStore(tmp_path / "g.zarr"), exported("float32")
    with (
        dask_config.set({"distributed.scheduler.allowed-failures": 0}),  # each death costs a start
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        with cluster.get_client() as client:
            client.register_plugin(evaluation_that_dies_of_gold())
        labelling.label_crystals(
            graphs,
            teacher,
            OnnxPotential.load(teacher, threads=1),
            tmp_path / LABELLED,
            VariantSettings(2),
            range(4),
            CUTOFF,
            RunOptions(scheduler=cluster.scheduler_address),
        )
    labelled = GraphStore(tmp_path / LABELLED)
    assert labelled.attrs["counts"] == {"read": 10, "stored": 10, "failed": 0, "duplicate": 0}
    statuses, crystals = labelled.column(LABEL_STATUS), labelled.column(CRYSTAL)
    assert statuses[crystals == "1"].tolist() == ["too_large"]
    assert set(statuses[crystals != "1"].tolist()) <= {"ok", "extrapolating"}
    assert (statuses == "ok").any()
