"""Devices that evaluate an exported model; these tests are skipped if ONNX Runtime supports GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import DeviceError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import screen

from ...conftest import CUTOFF, write_extxyz

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime supports GPUs"
)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cuda+cpu"])
def test_a_gpu_that_is_not_there_is_an_error_that_says_how_to_get_one(
    exported: Callable[[str], Path], device: str
) -> None:
    with pytest.raises(DeviceError, match=rf"{re.escape(device)}: .* install onnxruntime-gpu .*, or choose cpu"):
        OnnxPotential.load(exported("float32"), device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "auto:1", "cpu:0", "cpu+cpu", "cuda+gpu", ""])
def test_what_is_no_device_is_an_error(exported: Callable[[str], Path], device: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        OnnxPotential.load(exported("float32"), device=device)


def test_a_screen_asks_before_it_begins(exported: Callable[[str], Path], tmp_path: Path) -> None:
    write_extxyz(tmp_path / "s.extxyz", 2)
    model, out = exported("float32"), tmp_path / "s.zarr"
    featurize(tmp_path / "s.extxyz", tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    for device, message in (("cuda", "does not support GPUs"), ("tpu", "unknown device")):
        with pytest.raises(DeviceError, match=message):
            screen(tmp_path / "g.zarr", model, out, device=device)
    assert not list(tmp_path.glob("s.zarr*"))


def test_auto_takes_the_cpu_where_there_is_no_gpu(exported: Callable[[str], Path]) -> None:
    cpu, auto = (OnnxPotential.load(exported("float32"), device=device) for device in ("cpu", "auto"))
    structures = list(probe_structures(cpu.elements, 3, 5, cutoff=cpu.cutoff))
    assert np.array_equal(cpu.evaluate_structures(structures).forces, auto.evaluate_structures(structures).forces)
