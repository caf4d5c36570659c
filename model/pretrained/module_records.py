"""Pickled PyTorch modules as inert records: what a file holds, without the code that it was made with.

A pickle is a program: it names functions and calls them. Here every name must be on a list, each class of the list
becomes a `Record` that only keeps its arguments and state, and the few functions that are called are our own. Names,
sizes and operations are checked before anything is read.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from ...pipeline.errors import CheckpointError, detail

# The settings and module names of a MACE of two layers take 0.4 MB; the code that e3nn compiled takes more.
MAX_PICKLE_BYTES, MAX_ARCHIVE_BYTES = 128 << 20, 4 << 30
# Packages whose classes and functions become records.
INERT = ("mace.", "e3nn.", "torch.nn.", "torch.fx.", "opt_einsum_fx.", "torch.jit.", "__torch__.")
INERT_NAMES = frozenset(
    {
        *("torch device", "torch Size", "torch float32", "torch float64", "torch int64", "torch tanh", "torch sigmoid"),
        *("torch abs", "numpy dtype"),
    }
)
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
FORBIDDEN_OPERATIONS = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "NEWOBJ_EX"})
MEMO_OPERATIONS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class Record:
    """An object of a file.

    Attributes:
        name: Name of its class or function.
        args: Arguments that it was made with.
        state: Its attributes.
    """

    name = ""

    def __new__(cls, *args: Any) -> Self:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.args = args
        made.state = {}
        return made

    args: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes."""
        self.state = state

    @property
    def kind(self) -> str:
        """Name of the class without its package."""
        return self.name.rpartition(".")[2]

    def __getitem__(self, name: str) -> Any:
        """Return an attribute, submodule, parameter or buffer.

        Raises:
            KeyError: Nothing has this name.
        """
        if not isinstance(self.state, dict):
            raise KeyError(name)
        for group in ("_modules", "_parameters", "_buffers"):
            found = self.state.get(group) or {}
            if name in found:
                return found[name]
        return self.state[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or a default if there is none."""
        try:
            return self[name]
        except KeyError:
            return default

    def children(self) -> dict[str, Record]:
        """Submodules by name."""
        modules = self.state.get("_modules") or {} if isinstance(self.state, dict) else {}
        return {str(name): one for name, one in modules.items() if isinstance(one, Record)}


def root_class(path: str | Path) -> str:
    """Name of the class of a pickled object, "" if the file is no archive of PyTorch or holds something else."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_pickle_name(archive)) as file:
            found = re.match(rb"\x80\x02c([\w.]{1,200})\n([\w.]{1,200})\n", file.read(512))
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError, NotImplementedError):
        return ""
    return ".".join(part.decode() for part in found.groups()) if found else ""


def read_module(path: str | Path) -> Record:
    """Read a file that `torch.save` made of a module.

    Raises:
        CheckpointError: The file is damaged, too large, or names something that is not on the list.
    """
    try:
        with Path(path).open("rb") as file:
            found = _read_archive(file)
    except _RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path}: damaged, or not a module that PyTorch saved ({detail(error)})") from error
    if not isinstance(found, Record):
        raise CheckpointError(f"{path}: holds no module, but {type(found).__name__}")
    return found


def tensors(module: Record, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a module and its submodules, named as in PyTorch's `state_dict`.

    Compiled code of e3nn is not run; the constants that it holds are read like buffers.
    """
    out: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        values = module.state.get(group) or {} if isinstance(module.state, dict) else {}
        out |= {f"{prefix}{name}": value for name, value in values.items() if isinstance(value, Tensor)}
    for name, child in {**module.children(), **_compiled(module)}.items():
        out |= tensors(child, f"{prefix}{name}.")
    return out


def _compiled(module: Record) -> dict[str, Record]:
    """Modules that e3nn compiled; it pickles each as the bytes of a separate archive."""
    codes = module.get("__codegen__")
    out = {}
    for name, code in codes.items() if isinstance(codes, Mapping) else ():
        content = code[-1] if isinstance(code, tuple) else code
        if isinstance(content, bytes):
            found = _read_archive(io.BytesIO(content), MAX_PICKLE_BYTES)
            if isinstance(found, Record) and isinstance(found.state, dict):
                plain = Record()
                plain.state = {"_buffers": {key: x for key, x in found.state.items() if isinstance(x, Tensor)}}
                out[str(name)] = plain
    return out


class _RefusedError(Exception):
    """The file asks for something that is not allowed."""


def _pickle_name(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError("the archive holds no data.pkl")
    return names[0]


def _read_archive(file: BinaryIO, limit: int = MAX_ARCHIVE_BYTES) -> Any:
    with zipfile.ZipFile(file) as archive:
        if sum(info.file_size for info in archive.infolist()) > limit:
            raise _RefusedError(f"it is larger than {limit >> 20} MiB when unpacked")
        if unsafe := [name for name in archive.namelist() if ".." in Path(name).parts or name.startswith("/")]:
            raise _RefusedError(f"the archive has an entry outside of its folder: {unsafe[0][:80]}")
        name = _pickle_name(archive)
        if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
            raise _RefusedError(f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        content = archive.read(name)
        _check(content)
        return _Reader(content, archive, name.removesuffix("data.pkl")).load()


def _check(content: bytes) -> None:
    """Check names and operations of a pickle before it is read.

    Raises:
        _RefusedError: A name or an operation is not on the list.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in FORBIDDEN_OPERATIONS:
            raise _RefusedError(f"it uses the operation {operation.name}, which files of PyTorch do not use")
        if operation.name == "GLOBAL" and _function(*str(argument).split(" ", 1)) is None:
            raise _RefusedError(f"reading it would need {str(argument).replace(' ', '.')}, which is not allowed")
        # A large index would make the unpickler allocate a large table.
        if operation.name in MEMO_OPERATIONS and int(str(argument)) > count:
            raise _RefusedError("its pickle is damaged")


class _Reader(pickle.Unpickler):
    """Unpickler of records, with the tensors of an archive."""

    def __init__(self, content: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(content))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Find a function or class on the list."""
        found = _function(module, name)
        if found is None:
            raise _RefusedError(f"reading it would need {module}.{name}, which is not allowed")
        return found

    def persistent_load(self, pid: Any) -> Tensor:
        """Read the numbers of a tensor."""
        _, storage, key, _, count = pid
        if not re.fullmatch(r"\d{1,9}", str(key)):
            raise _RefusedError("its pickle is damaged")
        if key not in self.storages:
            info = self.archive.getinfo(self._entry(str(key)))
            dtype = STORAGES[storage.name.rpartition(".")[2]]
            if info.file_size < int(count) * dtype.itemsize:
                raise _RefusedError("a tensor is larger than its part of the file")
            data = bytearray(self.archive.read(info))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]

    def _entry(self, key: str) -> str:
        names = (f"{self.folder}{group}/{key}" for group in ("data", "constants"))
        return next(name for name in names if name in self.archive.NameToInfo)


def _function(module: str, name: str) -> Any:
    """What a name stands for; None if it is not on the list."""
    if (module, name) in _CALLED:
        return _CALLED[module, name]
    if f"{module}.".startswith(INERT) or f"{module} {name}" in INERT_NAMES or (module == "torch" and name in STORAGES):
        return type(name, (Record,), {"name": f"{module}.{name}"})
    return None


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Copy a tensor from its part of a storage."""
    numbers = (offset, *size, *stride)
    if min(numbers) < 0 or math.prod(size) > len(storage):
        raise _RefusedError("a tensor is larger than its part of the file")
    if math.prod(size) and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise _RefusedError("a tensor is larger than its part of the file")
    return storage.as_strided(size, stride, offset).clone()


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _number(kind: Record, content: bytes) -> float:
    """A number of NumPy."""
    code = str(kind.args[0])
    if code not in {"f4", "f8", "i4", "i8"}:
        raise _RefusedError(f"it holds a number of type {code[:20]}")
    return float(np.frombuffer(content, dtype=f"<{code}", count=1)[0])


def _names() -> Iterator[tuple[tuple[str, str], Any]]:
    yield ("collections", "OrderedDict"), OrderedDict
    yield ("torch._utils", "_rebuild_tensor_v2"), _tensor
    yield ("torch._utils", "_rebuild_parameter"), _parameter
    yield ("_codecs", "encode"), _encode
    for package in ("builtins", "__builtin__"):
        yield (package, "set"), set
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield (package, "scalar"), _number


# Functions that a pickle may call.
_CALLED = dict(_names())
