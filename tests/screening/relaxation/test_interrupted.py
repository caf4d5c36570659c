"""Relaxations that are disturbed: a structure that kills its worker, a store that is replaced, settings that change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask import config as dask_config
from distributed import LocalCluster, WorkerPlugin
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import EquiscreenError, OutputExistsError, StoreError
from equiscreen.pipeline.runs.options import DEFAULT_SLOTS
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.screening import RelaxSettings, relax
from equiscreen.screening.relaxation import relax as relax_module
from equiscreen.screening.relaxation.batched import OK, TOO_LARGE

from ...conftest import CUTOFF, write_extxyz

CONVERGED_AT_ONCE = RelaxSettings(fmax=1e6, smax=1e9, trajectory=True)  # by an untrained network
GOLD = 79


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A graph store of four crystals of aluminium and copper."""
    source = write_extxyz(tmp_path / "c.extxyz", 4, seed=310, elements=(13, 29))
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    return tmp_path / "g.zarr"


def replace_store(store: Path) -> None:
    """Put another store of as many crystals in the place of `store`."""
    source = write_extxyz(store.with_name("other.extxyz"), 4, seed=311, elements=(13, 29))
    featurize(source, store, cutoff=CUTOFF, overwrite=True, scheduler="threads")


def evaluation_that_dies_of_gold() -> WorkerPlugin:
    """A worker plugin: the evaluation of a structure with gold kills its process, as a lack of memory would."""

    class PoisonedRuntime(WorkerPlugin):  # within a function, so that it travels to the workers by value
        def setup(self, worker: object) -> None:  # noqa: ARG002
            from equiscreen.export.runtime.onnx_potential import OnnxPotential  # noqa: PLC0415 - on the worker

            evaluate = OnnxPotential.evaluate

            def evaluate_or_die(potential: object, block: object) -> object:
                if GOLD in block.atomic_number:  # type: ignore[attr-defined]
                    os.abort()
                return evaluate(potential, block)  # type: ignore[arg-type]

            OnnxPotential.evaluate = evaluate_or_die  # type: ignore[assignment,method-assign]

    return PoisonedRuntime()


@pytest.mark.slow
def test_a_structure_that_kills_its_worker_costs_only_itself(exported: Callable[[str], Path], tmp_path: Path) -> None:
    source = write_extxyz(tmp_path / "c.extxyz", 3, seed=312, elements=(13, 29))
    lines = source.read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if line.startswith(("Al ", "Cu ")))
    lines[place] = "Au " + lines[place][3:]
    source.write_text("".join(lines))
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    graphs = GraphStore(tmp_path / "g.zarr")
    assert GOLD in graphs.block(0, 1).atomic_number
    with (
        dask_config.set({"distributed.scheduler.allowed-failures": 0}),  # each death costs a start
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        with cluster.get_client() as client:
            client.register_plugin(evaluation_that_dies_of_gold())
        scores = relax(
            graphs.path,
            exported("float32"),
            tmp_path / "r.zarr",
            CONVERGED_AT_ONCE,
            scheduler=cluster.scheduler_address,
        )
    assert scores["status"].values.tolist() == [TOO_LARGE, OK, OK]
    assert "the worker process died" in str(scores["status_note"].values[0])
    assert np.isfinite(scores["energy"].values).tolist() == [False, True, True]
    assert scores["n_steps"].values.tolist() == [0, 1, 1]
    relaxed = GraphStore(tmp_path / "r.graphs.zarr")
    assert relaxed.verify() == []
    kept, given = relaxed.block(0, 1).structure(0), graphs.block(0, 1).structure(0)
    assert np.array_equal(kept.cell, given.cell)
    assert np.array_equal(kept.frac_coord, given.frac_coord)


@pytest.mark.parametrize("moment", ["before the parts", "after the parts"])
def test_a_store_that_is_replaced_during_the_run_is_an_error(
    store: Path,
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Workers notice it when they open the store, and the run notices it before it publishes."""
    make_parts = StoreRun.make_parts

    def replace_and_make(*words: Any, **folders: Path) -> Any:
        monkeypatch.undo()  # featurizing makes parts, too
        if moment == "before the parts":
            replace_store(store)
        made = make_parts(*words, **folders)
        replace_store(store)
        return made

    monkeypatch.setattr(StoreRun, "make_parts", replace_and_make)
    with pytest.raises(StoreError, match=r"g\.zarr has changed during this run"):
        relax(store, exported("float32"), tmp_path / "r.zarr", CONVERGED_AT_ONCE, scheduler="threads")
    assert not (tmp_path / "r.zarr").exists()
    assert not (tmp_path / "r.graphs.zarr").exists()


def test_other_slots_or_another_kind_of_device_do_not_resume_a_run(
    store: Path, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both change the rounding of results."""
    model, out = exported("float32"), tmp_path / "r.zarr"
    monkeypatch.setattr(relax_module, "PART_STRUCTURES", 1)
    until = relax_module._until
    with monkeypatch.context() as patch:
        patch.setattr(relax_module, "_until", lambda deadline, tasks: list(until(deadline, tasks))[:1])
        with pytest.raises(EquiscreenError, match="1 of 4 structures are relaxed"):
            relax(store, model, out, CONVERGED_AT_ONCE, scheduler="threads", budget=1e6)
    with pytest.raises(OutputExistsError, match=r"unfinished run with different settings \(slots\)"):
        relax(store, model, out, CONVERGED_AT_ONCE, scheduler="threads", slots=1024)
    with pytest.raises(OutputExistsError, match=r"unfinished run with different settings \(device\)"):
        relax(store, model, out, CONVERGED_AT_ONCE, scheduler="threads", slots=DEFAULT_SLOTS, device="auto")
