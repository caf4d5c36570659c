"""Pickles as records and tensors.

A pickle is a program: it names functions and calls them. Here every name must be on a list. Classes on the list become
records, the few functions that are called are our own, and names and operations are checked before anything is read.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .record import Record

# Packages whose classes and functions become records in every file.
INERT = ("e3nn.", "torch.nn.")
INERT_NAMES = frozenset(
    {"torch.tanh", "torch.abs", "torch.sigmoid", "torch.device", "numpy.dtype", "builtins.slice", "__builtin__.slice"}
)
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
# Largest number of elements of a tensor that repeats the numbers of its storage, as an expanded tensor does.
MAX_REPEATED = 1 << 16
FORBIDDEN_OPERATIONS = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "NEWOBJ_EX"})
MEMO_OPERATIONS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

# Reads a storage: its key, the type of its numbers, and how many there are.
StorageReader = Callable[[str, torch.dtype, int], Tensor]


class RefusedError(Exception):
    """The file is damaged, or asks for something that is not allowed."""


def read_pickle(content: bytes, storage: StorageReader, inert: Sequence[str] = ()) -> Any:
    """Read a pickle that PyTorch wrote.

    Args:
        content: The pickle.
        storage: Reads the numbers of a tensor.
        inert: Beginnings of the dotted names that become records, in addition to `INERT`.

    Raises:
        RefusedError: A name or an operation is not allowed, or a tensor exceeds its storage. A damaged pickle can
            raise any other error.
    """
    reader = _Reader(content, storage, (*INERT, *inert))
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in FORBIDDEN_OPERATIONS:
            raise RefusedError(f"the pickle uses the operation {operation.name}, which PyTorch does not use")
        if operation.name == "GLOBAL":
            reader.find_class(*str(argument).split(" ", 1))
        # A large index would make the unpickler allocate a large table.
        if operation.name in MEMO_OPERATIONS and int(str(argument)) > count:
            raise RefusedError("its pickle is damaged; copy or download the file again")
    return reader.load()


class _Reader(pickle.Unpickler):
    """Unpickler of tensors, containers and records, and nothing else."""

    def __init__(self, content: bytes, storage: StorageReader, inert: tuple[str, ...]) -> None:
        super().__init__(io.BytesIO(content))
        self.storage, self.inert = storage, inert
        self.kinds: dict[str, type[Record]] = {}
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name on the list stands for.

        Raises:
            RefusedError: The name is not on the list.
        """
        dotted = f"{module}.{name}"
        if dotted in _CALLED:
            return _CALLED[dotted]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return getattr(torch, name)
        if dotted in INERT_NAMES or dotted.startswith(self.inert):
            if dotted not in self.kinds:
                self.kinds[dotted] = type(name, (Record,), {"kind": dotted})
            return self.kinds[dotted]
        raise RefusedError(f"reading the file requires {dotted}, which is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        """Read the numbers of a tensor.

        Raises:
            RefusedError: The pickle refers to something other than numbers, or is damaged.
        """
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise RefusedError(
                "the file is damaged, or contains compiled code instead of modules; save the model without compiling it"
            )
        _, dtype, key, _, count = pid
        if not re.fullmatch(r"\d{1,9}", str(key)) or not isinstance(dtype, torch.dtype):
            raise RefusedError("its pickle is damaged; copy or download the file again")
        if key not in self.storages:
            self.storages[key] = self.storage(str(key), dtype, int(count))
        return self.storages[key]


def numbers_of(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return the numbers in the bytes of a storage, as a tensor with one axis."""
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """Return a view of a storage, within its bounds."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (
        min([offset, *size, *stride]) < 0
        or math.prod(size) > max(len(storage), MAX_REPEATED)
        or (0 not in size and last >= len(storage))
    ):
        raise RefusedError("a tensor is larger than the data stored for it; copy or download the file again")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _number(kind: Record, content: bytes) -> float:
    """Convert a pickled NumPy scalar to a float."""
    code = str(kind.args[0])
    if code not in {"f4", "f8", "i4", "i8"}:
        raise RefusedError(f"it contains a number of the unsupported type {code[:20]}")
    return float(np.frombuffer(content, dtype=f"<{code}", count=1)[0])


# Functions that a pickle may call.
_CALLED = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "_codecs.encode": _encode,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}
