"""Model files made from another by changing what is in it, which takes no export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ...conftest import REFERENCES


def altered(
    model: Path, out: Path, factor: float = 1.0, references: tuple[float, ...] | None = None, **metadata: object
) -> Path:
    """Write a model whose weights, or whose energies of free atoms, or whose metadata are others.

    Args:
        model: The file to start from.
        out: The file to write.
        factor: Of the largest matrices of weights.
        references: Energies in place of `conftest.REFERENCES`.
        **metadata: Fields of the metadata to replace.
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
    for item in proto.metadata_props:
        name = item.key.removeprefix("equiscreen.")
        if name in metadata:
            item.value = json.dumps(metadata[name])
    out.write_bytes(proto.SerializeToString())
    return out
