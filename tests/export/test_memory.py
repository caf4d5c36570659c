"""The memory of an evaluation that a model file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.export.memory import table_memory
from equiscreen.export.runtime.placement import read_profile
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.graphs.neighbor_table import neighbor_table
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ..conftest import CUTOFF, ELEMENTS


@pytest.fixture(scope="module")
def block() -> GraphBlock:
    return GraphBlock.from_structures(probe_structures(ELEMENTS, 40, seed=3), CUTOFF)


def test_the_memory_lies_between_the_largest_tensor_and_all_of_them(
    exported: Callable[[str], Path], block: GraphBlock, tmp_path: Path
) -> None:
    data = exported("float32").read_bytes()
    memory = table_memory(data, block, CUTOFF, "float32")
    assert memory == table_memory(data, block, CUTOFF, "float32")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    table = neighbor_table(block, CUTOFF).arrays()
    session.run(None, {item.name: table[item.name] for item in session.get_inputs()})
    made = [tensor for run in read_profile(Path(session.end_profiling()).read_text()) for tensor in run.outputs]
    slots = table["neighbors"].size
    assert memory.elements_per_slot - 1 < max(elements for _, elements in made) / slots <= memory.elements_per_slot
    inputs = sum(np.asarray(table[item.name]).nbytes for item in session.get_inputs())
    assert 4 * memory.elements_per_slot - 4 < memory.bytes_per_slot
    assert memory.bytes_per_slot < 0.5 * (inputs + sum(8 * elements for _, elements in made)) / slots


def test_larger_tables_need_no_more_memory_per_slot_than_the_file_says(
    exported: Callable[[str], Path], block: GraphBlock
) -> None:
    metadata = OnnxPotential.load(exported("float32")).metadata
    found = table_memory(exported("float32").read_bytes(), block, CUTOFF, "float32")
    assert 0 < found.bytes_per_slot <= 1.25 * metadata.bytes_per_slot
    assert 0 < found.elements_per_slot <= 1.25 * metadata.elements_per_slot
