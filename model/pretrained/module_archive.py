"""Modules of PyTorch in archives of `torch.package`, read as plain records: no code of the archive is run.

Such an archive (a `.nequip.zip` file, for example) is a ZIP file of source code, pickled modules and the contents of
their tensors. Here its pickles are read by an unpickler that knows tensors, and turns every other class it is allowed
to see into a `Record` of its arguments and attributes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
from torch import Tensor

from ...pipeline.errors import CheckpointError, detail

# Far beyond every published model, which has a few hundred members, a pickle of 1 MB and texts of 10 kB.
MAX_MEMBERS, MAX_PICKLE_BYTES, MAX_TEXT_BYTES = 20_000, 1 << 26, 1 << 20
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
CONTAINERS = {("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set, ("torch", "Size"): tuple}


class Record:
    """An object of a class that is not imported: what it was made from, and its attributes.

    Attributes:
        kind: Dotted name of the class.
        args: Arguments that it was made from.
        fields: Attributes.
    """

    kind = ""
    args: tuple[Any, ...]
    fields: dict[str, Any]

    def __new__(cls, *args: Any) -> Self:
        """Keep the arguments; nothing is computed from them."""
        made = super().__new__(cls)
        made.args, made.fields = args, {}
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes."""
        first, *others = state if isinstance(state, tuple) else (state,)
        for some in (first, *others):
            if isinstance(some, dict):
                self.fields |= some

    @property
    def name(self) -> str:
        """Name of the class, without its module."""
        return self.kind.rpartition(".")[2]

    def child(self, *names: str) -> Record:
        """Return a submodule by the names on the way to it.

        Raises:
            KeyError: There is no such submodule.
        """
        found = self
        for name in names:
            found = found.children()[name]
        return found

    def children(self) -> dict[str, Record]:
        """Submodules by name, without those that are None."""
        return {name: x for name, x in (self.fields.get("_modules") or {}).items() if isinstance(x, Record)}

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers of the module and its submodules, by dotted name."""
        for group in ("_parameters", "_buffers"):
            for name, tensor in (self.fields.get(group) or {}).items():
                if isinstance(tensor, Tensor):
                    yield f"{prefix}{name}", tensor
        for name, module in self.children().items():
            yield from module.tensors(f"{prefix}{name}.")


class ModuleArchive:
    """An archive of `torch.package`.

    Args:
        path: Path of the file.
        prefixes: Dotted prefixes of the modules whose classes and functions may occur.

    Raises:
        CheckpointError: The file is not such an archive, is truncated, or contains unexpected members.
    """

    def __init__(self, path: Path, prefixes: Sequence[str]) -> None:
        self.path, self.prefixes = path, tuple(prefixes)
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, or not a ZIP file ({detail(error)})") from error
        names = self.archive.namelist()
        if len(names) > MAX_MEMBERS:
            raise CheckpointError(f"{path}: has {len(names):,} members; at most {MAX_MEMBERS:,} are read")
        for name in names:
            place = PurePosixPath(name.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
                raise CheckpointError(f"{path}: contains {name!r}, which lies outside of the archive; not imported")
        self.root = names[0].replace("\\", "/").partition("/")[0] if names else ""

    def text(self, name: str) -> str:
        """Read a text member, by its name in the package.

        Raises:
            CheckpointError: There is no such member, or it is damaged or too large.
        """
        return self._read(name, MAX_TEXT_BYTES).decode(errors="replace")

    def unpickled(self, name: str) -> Any:
        """Read a pickled member.

        Raises:
            CheckpointError: There is no such member, it is damaged or too large, or it contains something that a model
                does not need.
        """
        data = self._read(name, MAX_PICKLE_BYTES)
        try:
            return _Unpickler(data, self).load()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way
            raise CheckpointError(f"{self.path}: damaged: {name} cannot be read ({detail(error)})") from error

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Read the content of a tensor: `count` numbers of a type.

        Raises:
            CheckpointError: There is no such content, or it has another size.
        """
        size = count * torch.empty(0, dtype=dtype).element_size()
        data = self._read(f".data/{int(key)}.storage", size)
        if len(data) != size:
            raise CheckpointError(f"{self.path}: damaged: a tensor has {len(data)} bytes instead of {size}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def _read(self, name: str, limit: int) -> bytes:
        try:
            info = self.archive.getinfo(f"{self.root}/{name}")
            size, data = info.file_size, self.archive.read(info) if info.file_size <= limit else b""
        except KeyError as error:
            raise CheckpointError(f"{self.path}: has no member {name}; not a package of a model") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: damaged: {name} cannot be read ({detail(error)})") from error
        if size > limit:
            raise CheckpointError(f"{self.path}: {name} has {size:,} bytes; at most {limit:,} are read")
        return data


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes tensors, containers and records, and nothing else."""

    def __init__(self, data: bytes, archive: ModuleArchive) -> None:
        super().__init__(io.BytesIO(data))
        self.archive = archive
        self.kinds: dict[str, type[Record]] = {}
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return getattr(torch, name)
        dotted = f"{module}.{name}"
        if dotted in {"torch.tanh", "torch.abs", "builtins.slice"} or dotted.startswith(self.archive.prefixes):
            if dotted not in self.kinds:
                self.kinds[dotted] = type(name, (Record,), {"kind": dotted})
            return self.kinds[dotted]
        raise CheckpointError(f"{self.archive.path}: contains {dotted}, which no model needs; not imported")

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise CheckpointError(f"{self.archive.path}: contains compiled code instead of modules; not imported")
        _, dtype, key, _, count = pid
        if key not in self.storages:
            self.storages[key] = self.archive.storage(str(key), dtype, int(count))
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """View of a storage, within its bounds."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min([offset, *size, *stride]) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor exceeds its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data
