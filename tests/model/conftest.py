"""Graph stores to train on, shared by the training tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from equiscreen.model import Config
from equiscreen.model.training.lightning_module import TrainingModule
from equiscreen.pipeline import featurize
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ..conftest import ELEMENTS, write_emt_labelled

SMALL = {
    "network": {"hidden_irreps": "4x0e + 2x1o", "n_radial": 4, "correlation": 2},
    "training": {"max_epochs": 3, "batch_size": 8, "split": {"validation": 0.25}, "threads": 1},
}


def small_config(network: dict[str, Any] | None = None, **training: Any) -> Config:
    """Configuration of a network that trains in seconds."""
    sections = {"network": {**SMALL["network"], **(network or {})}, "training": {**SMALL["training"], **training}}
    return Config.parse(sections, "test")


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Interrupt the training in this block after a number of steps, as Ctrl-C does."""
    step, done = TrainingModule.training_step, []

    def interrupted(self: TrainingModule, batch: Any, batch_idx: int) -> None:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(batch_idx)
        step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of alloys with EMT energies, forces and stresses."""
    folder = tmp_path_factory.mktemp("training")
    write_emt_labelled(folder / "s.extxyz", probe_structures(ELEMENTS, 40, seed=30))
    featurize(folder / "s.extxyz", folder / "g.zarr", cutoff=4.5, scheduler="threads")
    return folder / "g.zarr"
