"""Workers of several kinds: tasks go where their device is, and kinds that round differently are not mixed unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster
from equiscreen.export import OnnxPotential
from equiscreen.export.probes import LIMITS
from equiscreen.export.runtime.providers import gpu_model, instruction_set, visible_gpus
from equiscreen.pipeline import GraphBlock, featurize
from equiscreen.pipeline.errors import DeviceError, EquiscreenError
from equiscreen.pipeline.graphs.neighbor_table import neighbor_table
from equiscreen.pipeline.runs.cluster import connect
from equiscreen.pipeline.runs.failure_policy import run_tasks
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import screen
from equiscreen.screening.scoring import screen as screening
from numpy._core._multiarray_umath import __cpu_features__

from ...conftest import CUTOFF, write_extxyz

STRUCTURES, PART = 48, 4
HERE = f"cpu, {instruction_set()}"
# NumPy then has a narrower instruction set, whatever this machine has: its name for AVX2 since version 2.4, and before.
NARROWER = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3" if "X86_V3" in __cpu_features__ else "AVX512F AVX2"}
QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
# The arrays of scores that an allowed mixture may change, and by how much: eV/atom, eV/angstrom, eV/angstrom^3.
BOUNDS = {"energy_per_atom": LIMITS["energy"], "max_force": LIMITS["forces"], "stress": LIMITS["stress"]}

needs_x86 = pytest.mark.skipif(instruction_set() not in ("x86_64 AVX2", "x86_64 AVX-512"), reason="needs AVX2")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A scheduler without workers."""
    settings = {"dashboard_address": None, "host": "127.0.0.1", "protocol": "tcp"}
    with LocalCluster(n_workers=0, processes=False, **settings) as made:
        yield made


@contextmanager
def worker(cluster: LocalCluster, *words: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """A worker process that has joined."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    process = subprocess.Popen(
        [*command, "--no-nanny", "--no-dashboard", "--nthreads", "1", *words],
        env={**os.environ, **(env or {})},
        stderr=subprocess.DEVNULL,
    )
    try:
        with cluster.get_client() as client:
            client.wait_for_workers(len(client.nthreads()) + 1, timeout=300)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "PART_STRUCTURES", PART)


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    source = write_extxyz(tmp_path / "c.extxyz", STRUCTURES, seed=23)
    featurize(source, tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    return tmp_path / "g.zarr"


@pytest.mark.usefixtures("small_parts")
@needs_x86
def test_instruction_sets_are_mixed_only_on_request(
    cluster: LocalCluster, graphs: Path, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = exported("float32"), graphs.with_name("s.zarr")
    settings = {"scheduler": cluster.scheduler_address}
    expected = screen(graphs, model, graphs.with_name("e.zarr"), scheduler="threads")
    assert expected.attrs["computed_on"] == [HERE]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with worker(cluster), monkeypatch.context() as patch:
        patch.setattr(StoreRun, "concatenate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            screen(graphs, model, out, **settings)
    parts = sorted(graphs.parent.glob("s.zarr.partial/*/parts/*.json"))
    assert len(parts) == STRUCTURES // PART
    parts[0].unlink()
    with worker(cluster, env=NARROWER):
        with pytest.raises(DeviceError) as told:
            screen(graphs, model, out, **settings)
        assert str(told.value).startswith("worker tcp://127.0.0.1:")
        assert f" computes on cpu, x86_64 AVX, but the other parts of this run on {HERE}, and " in str(told.value)
        assert str(told.value).endswith("use workers of one kind, or --allow-mixed-devices")
        with monkeypatch.context() as patch:
            patch.setattr(StoreRun, "concatenate", interrupted)
            with pytest.raises(KeyboardInterrupt):
                screen(graphs, model, out, allow_mixed_devices=True, **settings)
        with pytest.raises(DeviceError, match="earlier parts were computed on different devices"):
            screen(graphs, model, out, **settings)
        found = screen(graphs, model, out, allow_mixed_devices=True, **settings)
        assert found.attrs["computed_on"] == sorted([HERE, "cpu, x86_64 AVX"])
        for name, bound in BOUNDS.items():
            assert float(np.abs(found[name] - expected[name]).max()) <= bound


@pytest.mark.usefixtures("small_parts")
@needs_x86
def test_tasks_go_where_their_device_is(cluster: LocalCluster, graphs: Path, exported: Callable[[str], Path]) -> None:
    """The worker for the GPU gets no task of the CPU: it would refuse it, since it rounds differently."""
    with worker(cluster, "--resources", "GPU=1", env=NARROWER), worker(cluster, "--resources", "CPU=1"):
        settings = {"scheduler": cluster.scheduler_address}
        found = screen(graphs, exported("float32"), graphs.with_name("s.zarr"), **settings)
    assert found.attrs["computed_on"] == [HERE]
    expected = screen(graphs, exported("float32"), graphs.with_name("e.zarr"), scheduler="threads")
    assert found.attrs["store_hash"] == expected.attrs["store_hash"]


def test_a_run_whose_device_no_worker_has_ends_with_one_line(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equiscreen.pipeline.runs.failure_policy.WITHOUT_WORKERS_S", 1)
    with (
        worker(cluster, "--resources", "CPU=1"),
        connect(cluster.scheduler_address) as client,
        pytest.raises(EquiscreenError, match="no worker with the resource GPU has joined for 1 s; check that"),
    ):
        list(run_tasks(client, abs, [-1], resource="GPU"))


def test_every_gpu_of_this_machine_gets_a_worker() -> None:
    """The layout of dask-cuda; no GPU is needed to see which one a worker would use."""

    # A function inside a function is sent as it is: the workers cannot import this module of tests.
    def seen() -> tuple[int, str]:
        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

    with connect(None, gpus=["0", "GPU-8f"]) as client:
        found = client.run(seen)
        assert sorted(gpu for _, gpu in found.values()) == ["0", "GPU-8f"]
        assert len({process for process, _ in found.values()}) == 2
        workers = client.scheduler_info()["workers"].values()
        assert [one["resources"] for one in workers] == [{"GPU": 1}] * 2


def test_gpus_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the driver answers as on a machine with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '*=index*) printf "0\\n1\\n";;\n*"--id 1") echo "NVIDIA H100 80GB HBM3, 9.0";;\n*) exit 6;;\nesac\n'
    )
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ("0", "1")
    assert gpu_model("cuda:1") == "NVIDIA H100 80GB HBM3 9.0"
    for chosen, gpus in (("1, 0", ("1", "0")), ("", ()), ("-1", ()), ("GPU-8f", ("GPU-8f",))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus() == gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_model("cuda") == "NVIDIA H100 80GB HBM3 9.0"
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert gpu_model("auto") == "GPU"


# Evaluates a table in a process that imports little, since an emulated processor is slow.
EMULATED = """
import sys
import numpy as np
import onnxruntime
from equiscreen.export import OnnxPotential
from equiscreen.export.probes import LIMITS
from numpy._core._multiarray_umath import __cpu_features__
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
table = np.load(sys.argv[2])
names = [item.name for item in session.get_outputs()]
results = session.run(names, {item.name: table[item.name] for item in session.get_inputs()})
np.savez(sys.argv[3], **dict(zip(names, results)))
print(__cpu_features__["AVX"])
"""


@pytest.mark.slow
@needs_x86
@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed")
def test_another_processor_differs_by_rounding(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """Without AVX, ONNX Runtime has other kernels, which give other bits within the limits of an export."""
    potential = OnnxPotential.load(exported("float32"), threads=1)
    block = GraphBlock.from_structures(probe_structures(potential.elements, 24, seed=9), CUTOFF)
    table = neighbor_table(block, CUTOFF).arrays()
    here = potential.run_table(table)
    np.savez(tmp_path / "table.npz", **table)
    files = [str(exported("float32")), str(tmp_path / "table.npz"), str(tmp_path / "found.npz")]
    command = [str(QEMU), "-cpu", "Nehalem", sys.executable, "-c", EMULATED, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert done.stdout.split() == ["False"]
    there = np.load(tmp_path / "found.npz")
    assert not all(np.array_equal(here[name], there[name]) for name in LIMITS)
    crystals = block.pbc.all(axis=1)
    differences = {name: np.abs(here[name] - there[name]) for name in LIMITS}
    assert (differences["energy"] / block.n_atoms).max() <= LIMITS["energy"]
    assert differences["forces"].max() <= LIMITS["forces"]
    assert differences["stress"][crystals].max() <= LIMITS["stress"]
