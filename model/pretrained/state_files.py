"""Files of named arrays: a state dict of PyTorch, safetensors, or NumPy's npz."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...pipeline.errors import CheckpointError, detail

MAX_HEADER_BYTES = 16 << 20
# Names of dtypes in the header of a safetensors file (https://huggingface.co/docs/safetensors), as in NumPy.
SAFETENSORS = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "|b1"}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read named arrays; no code in the file is run.

    Args:
        path: A `.safetensors` or `.npz` file; any other is read as a state dict of PyTorch.

    Raises:
        CheckpointError: The file is missing or damaged, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        if file.suffix == ".safetensors":
            return _safetensors(file)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise CheckpointError(
            f"{path} is damaged, or is not a weights file ({detail(error)}); copy or download it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(
            f"{path} is not a state dict, which holds tensors by name and nothing else; save only `model.state_dict()`"
        )
    return {str(name): x for name, x in content.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError("its header is too large")
        header, content = json.loads(file.read(size)), file.read()
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (int(place) for place in entry["data_offsets"])
        dtype, shape = np.dtype(SAFETENSORS[entry["dtype"]]), [int(length) for length in entry["shape"]]
        if min([begin, *shape]) < 0 or end > len(content) or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the size of {name} is wrong")
        values = np.zeros(shape, dtype=dtype)
        if values.size:
            values[...] = np.frombuffer(content[begin:end], dtype=dtype).reshape(shape)
        out[name] = torch.from_numpy(values)
    return out
