"""Model files made by altering another one, which needs no export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...conftest import REFERENCES


def altered(
    model: Path, out: Path, factor: float = 1.0, references: tuple[float, ...] | None = None, **metadata: object
) -> Path:
    """Write a copy of a model with other weights, other energies of free atoms, or other metadata.

    Args:
        model: Path of the model to start from.
        out: Path of the file to write.
        factor: Factor on the largest weight matrices.
        references: Energies that replace `conftest.REFERENCES`, eV.
        **metadata: Metadata fields to replace.
    """
    proto = onnx.load_model_from_string(model.read_bytes())
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if references is not None and values.shape[:1] == (3,) and np.array_equal(values.ravel(), REFERENCES):
            changed = np.array(references, values.dtype).reshape(values.shape)
        elif factor != 1.0 and values.dtype.kind == "f" and values.ndim == 2 and len(np.unique(values)) > 10:
            changed = (values * factor).astype(values.dtype)
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    helper.set_model_props(proto, {p.key: p.value for p in proto.metadata_props if p.key != "equiscreen-checksum"})
    for item in proto.metadata_props:
        name = item.key.removeprefix("equiscreen.")
        if name in metadata:
            item.value = json.dumps(metadata[name])
    out.write_bytes(proto.SerializeToString())
    return out
