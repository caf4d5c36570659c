"""Several processes, and batches in parts, give the results of one process with whole batches."""

from __future__ import annotations

import ipaddress
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from equiscreen.model import load_checkpoint, train
from equiscreen.model.config.training import LossConfig
from equiscreen.model.data.batches import StructureBatches
from equiscreen.model.training.callbacks import RENDEZVOUS
from equiscreen.model.training.losses import residuals, total_loss
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, small_network, write_emt_labelled
from ..conftest import small_config

# Rounding after several steps, since sums over structures run in another order.
TOLERANCE = 1e-10


@contextmanager
def listening() -> Iterator[set[str]]:
    """The addresses on which this process and its children listen during the block."""
    found: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.1):
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):
                    sockets = process.net_connections("inet")
                    found.update(one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(store: Path, tmp_path: Path) -> None:
    # Batches of seven cannot be divided evenly; the last one, of two, leaves one structure to each process.
    settings = {"dtype": "float64", "batch_size": 7, "max_epochs": 2, "accelerator": "cpu"}
    one = train(store, tmp_path / "one", small_config(**settings))
    with listening() as hosts:
        two = train(store, tmp_path / "two", small_config(**settings, devices=2))
    assert {ipaddress.ip_address(host).is_loopback for host in hosts} == {True}
    assert not (tmp_path / "two" / RENDEZVOUS).exists()
    for name, value in one.validation.items():
        assert two.validation[name] == pytest.approx(value, rel=1e-8)
    first, second = (load_checkpoint(report.checkpoint)[0].state_dict() for report in (one, two))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() <= TOLERANCE * max(1.0, float(tensor.abs().max())), name


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_gradients_of_the_parts_of_a_batch_add_up(store: Path, parts: int) -> None:
    graphs = GraphStore(store)
    network = small_network().train()
    chosen = [np.ones(len(graphs), dtype=bool)]
    batch = next(
        iter(StructureBatches([graphs], chosen, {}, 8, network.cutoff, torch.float64, energy=True, shuffle=None))
    )
    counts = {name: torch.isfinite(label).sum() for name, label in batch.labels.items()}
    gradients = []
    for pieces in ([batch], batch.split(parts)):
        network.zero_grad()
        for piece in pieces:
            total_loss(residuals(network, network.predict(*piece.inputs), piece), LossConfig(), counts).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert len(batch.split(parts)) == parts
    for whole, summed in zip(*gradients, strict=True):
        assert torch.allclose(whole, summed, rtol=1e-10, atol=1e-10)


@pytest.mark.slow  # and it depends on how much address space the libraries take
def test_a_batch_that_does_not_fit_into_memory_is_done_in_parts(tmp_path: Path) -> None:
    # Some 90,000 edges in a batch take 2 GB on top of the 1.9 GB of address space of an idle process.
    large = [Structure.from_ase(s.to_ase().repeat(3)) for s in probe_structures(ELEMENTS, 9, seed=3, max_atoms=27)]
    write_emt_labelled(tmp_path / "s.extxyz", large)
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", cutoff=6.0, scheduler="threads")
    settings = small_config(
        {"hidden_irreps": "64x0e + 64x1o + 64x2e", "correlation": 3, "n_interactions": 3}, batch_size=8, max_epochs=1
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    limit = 2_800_000_000
    done = subprocess.run(
        [sys.executable, "-m", "equiscreen", "train", "g.zarr", "--config", "config.yaml", "--out", "run"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"out of memory; batches are now processed in \d+ parts", done.stderr)
