"""Loading model files: bad files are rejected, and a good one gives the results of its network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from equiscreen.cli.terminal.describe import describe
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import export_onnx, lower_and_check
from equiscreen.export.runtime.file_validation import check_model_bytes, with_checksum
from equiscreen.model.checkpoint import ModelCard
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.errors import CheckpointError, ModelFileError, OutputExistsError, UnknownElementError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ...conftest import ELEMENTS, small_network


def test_the_file_gives_what_the_network_gives(exported: Callable[[str], Path], network: EquivariantNetwork) -> None:
    block = GraphBlock.from_structures(probe_structures(ELEMENTS, 25, seed=50), network.cutoff)
    expected = TorchPotential(network).evaluate(block)
    for dtype, tolerance in (("float64", 1e-11), ("float32", 2e-5)):
        for slots in (1, 300, 100_000):
            found = OnnxPotential.load(exported(dtype), slots=slots).evaluate(block)
            scale = np.abs(expected.forces).max()
            assert np.abs((found.energy - expected.energy) / block.n_atoms).max() < tolerance * scale
            assert np.abs(found.forces - expected.forces).max() < tolerance * scale
            assert np.abs(found.stress - expected.stress).max() < tolerance * scale


def test_structures_can_be_evaluated_without_a_store(exported: Callable[[str], Path]) -> None:
    potential = OnnxPotential.load(exported("float32"))
    structures = probe_structures(ELEMENTS, 3, seed=1)
    found = potential.evaluate_structures(structures)
    assert found.energy.shape == (3,)
    assert found.forces.shape == (sum(map(len, structures)), 3)


def test_an_unknown_element_is_an_error(exported: Callable[[str], Path]) -> None:
    with pytest.raises(UnknownElementError, match=r"elements \[92\]"):
        OnnxPotential.load(exported("float32")).evaluate_structures(probe_structures([92], 1, seed=0))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(exported: Callable[[str], Path], tmp_path: Path, share: float) -> None:
    whole = exported("float32").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelFileError, match=r"cut.onnx.*(damaged|cannot load|schema)"):
        OnnxPotential.load(tmp_path / "cut.onnx")


def test_what_is_no_model_is_refused(exported: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot read the model file"):
        OnnxPotential.load(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is a text and no model at all")
    with pytest.raises(ModelFileError, match="damaged or not an ONNX file"):
        OnnxPotential.load(tmp_path / "text.onnx")
    model = onnx.load_model_from_string(exported("float32").read_bytes())
    props = {p.key: p.value for p in model.metadata_props}
    helper.set_model_props(model, {**props, "equiscreen.schema": '"equiscreen-onnx/9"'})
    with pytest.raises(ModelFileError, match="equiscreen-onnx/9"):
        OnnxPotential(model.SerializeToString())
    helper.set_model_props(model, {})
    with pytest.raises(ModelFileError, match="exported by equiscreen"):
        OnnxPotential(model.SerializeToString())


def test_external_data_and_other_domains_are_refused(exported: Callable[[str], Path]) -> None:
    whole = exported("float32").read_bytes()
    model = onnx.load_model_from_string(whole)
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    with pytest.raises(ModelFileError, match="other files"):
        OnnxPotential(model.SerializeToString())

    model = onnx.load_model_from_string(whole)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelFileError, match=r"com\.microsoft"):
        OnnxPotential(model.SerializeToString())

    model = onnx.load_model_from_string(whole)
    constant = numpy_helper.from_array(np.zeros(3, dtype=np.float32))
    constant.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=constant))
    with pytest.raises(ModelFileError, match="other files"):
        OnnxPotential(model.SerializeToString())


def test_what_one_reader_skips_another_may_run(exported: Callable[[str], Path]) -> None:
    """Encodings that a check may read differently from ONNX Runtime."""
    whole = exported("float32").read_bytes()
    OnnxPotential(whole)
    model = onnx.load_model_from_string(whole)
    sparse = onnx.SparseTensorProto()
    sparse.values.data_location = TensorProto.EXTERNAL
    node = helper.make_node("Constant", [], ["unused"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
    model.graph.node.append(node)
    with pytest.raises(ModelFileError, match="cannot be used: it contains sparse tensors"):
        OnnxPotential(model.SerializeToString())

    model = onnx.load_model_from_string(whole)
    twice = b"\x3a\x00" + b"\x3a\x0dcom.microsoft"  # the field `domain` of a node
    other = helper.make_node("Gelu", ["x"], ["y"]).SerializeToString() + twice
    graph = model.graph.SerializeToString() + b"\x0a" + bytes([len(other)]) + other
    model.graph.Clear()
    with pytest.raises(ModelFileError, match=r"com\.microsoft|damaged"):
        OnnxPotential(model.SerializeToString() + b"\x3a" + varint(len(graph)) + graph)

    opset = b"\x0a\x00" + b"\x0a\x0dcom.microsoft" + b"\x10\x01"
    with pytest.raises(ModelFileError, match=r"com\.microsoft|damaged"):
        OnnxPotential(whole + b"\x42" + bytes([len(opset)]) + opset)

    for tag in (varint(14 << 3 | 2 | 1 << 32), b"\xf2\x80\x80\x80\x40", b"\xf2\x00", b"\xf2\x80\x00"):
        with pytest.raises(ModelFileError, match=r"damaged|cannot be used"):
            OnnxPotential(whole + tag + b"\x00")
    with pytest.raises(ModelFileError, match="damaged"):
        OnnxPotential(whole + b"\x42\x02\x10\x0b")  # a second version of the standard operators
    plain = onnx.load_model_from_string(whole).graph.SerializeToString()
    with pytest.raises(ModelFileError, match="damaged"):
        OnnxPotential(whole + b"\x3a" + varint(len(plain)) + plain)  # a second graph, which protobuf would merge


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(st.integers(0, 1 << 40))
@profile(max_examples=100, deadline=None)
def test_a_flipped_bit_is_noticed(exported: Callable[[str], Path], where: int) -> None:
    whole = bytearray(with_checksum(exported("float32").read_bytes()))
    check_model_bytes(bytes(whole), "model.onnx")
    place, bit = divmod(where % (8 * len(whole)), 8)
    whole[place] ^= 1 << bit
    if place < len(whole) - len(with_checksum(b"")):
        with pytest.raises(ModelFileError, match="damaged: its checksum does not match"):
            check_model_bytes(bytes(whole), "model.onnx")
    else:  # in the checksum itself: noticed too, unless its name is destroyed, and then all else is sound
        with contextlib.suppress(ModelFileError):
            check_model_bytes(bytes(whole), "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"symmetry": "o3", "hidden_irreps": "4x0e + 2x0o + 2x1o + 2x1e + 2x2e"},
        {"hidden_irreps": "8x0e", "n_interactions": 1, "correlation": 1, "l_max": 0},
        {"hidden_irreps": "4x0e + 2x1o + 2x2e + 2x3o", "n_interactions": 3, "l_max": 3},
    ],
)
def test_other_networks_export_too(settings: dict[str, object]) -> None:
    _, metadata = lower_and_check([small_network(**settings).float()], ModelCard())
    assert metadata.parity["forces/float64"] < 1e-3


def test_exporting_needs_a_checkpoint_and_a_free_place(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        export_onnx(tmp_path / "none.ckpt", tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"no model\.ckpt in this folder"):
        export_onnx(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export_onnx(checkpoint, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_describe_tells_files_apart(exported: Callable[[str], Path], checkpoint: Path) -> None:
    assert describe(exported("float32"))["schema"] == "equiscreen-onnx/1"
    assert describe(checkpoint)["schema"] == "equiscreen-model/1"
