"""Modules that `torch.save` wrote whole, such as MACE's `.model` files."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ....pipeline.errors import CheckpointError, detail
from .archive import MAX_PICKLE_BYTES, Archive
from .reader import RefusedError, numbers_of, read_pickle
from .record import Record

MAX_ARCHIVE_BYTES = 4 << 30
# Packages of compiled code, whose classes become records too.
COMPILED = ("torch.fx.", "opt_einsum_fx.", "torch.jit.", "__torch__.")


def root_class(path: str | Path) -> str:
    """Return the class name of a pickled object, "" if the file is not a PyTorch archive or holds something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            with archive.open(name) as file:
                found = re.match(rb"\x80\x02c([\w.]{1,200})\n([\w.]{1,200})\n", file.read(512))
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError, NotImplementedError):
        return ""
    return ".".join(part.decode() for part in found.groups()) if found else ""


def read_module(path: str | Path, inert: Sequence[str]) -> Record:
    """Read a module that `torch.save` wrote.

    Compiled code of e3nn is not run; the constants that it holds become buffers of submodules.

    Args:
        path: The file.
        inert: Beginnings of the dotted names of classes and functions that may occur.

    Raises:
        CheckpointError: The file is damaged, too large, or names something that is not on the list.
    """
    try:
        with Path(path).open("rb") as file:
            found = _read_archive(file, inert)
        if isinstance(found, Record):
            _attach_compiled(found, inert)
    except RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(
            f"{path} is damaged, or is not a module that PyTorch saved ({detail(error)}); copy or download it again"
        ) from error
    if not isinstance(found, Record):
        raise CheckpointError(
            f"{path} contains {type(found).__name__}, not a module; import a .model file that MACE saved"
        )
    return found


def _attach_compiled(module: Record, inert: Sequence[str]) -> None:
    """Turn the modules that e3nn compiled into submodules; each is pickled as the bytes of a separate archive."""
    for child in module.children().values():
        _attach_compiled(child, inert)
    codes = module.get("__codegen__")
    for name, code in codes.items() if isinstance(codes, Mapping) else ():
        content = code[-1] if isinstance(code, tuple) else code
        if isinstance(content, bytes):
            found = _read_archive(io.BytesIO(content), inert, MAX_PICKLE_BYTES)
            if isinstance(found, Record):
                plain = Record()
                plain.fields["_buffers"] = {key: x for key, x in found.fields.items() if isinstance(x, Tensor)}
                module.fields.setdefault("_modules", {})[str(name)] = plain


def _read_archive(file: BinaryIO, inert: Sequence[str], limit: int = MAX_ARCHIVE_BYTES) -> Any:
    archive = Archive(file)
    if archive.size > limit:
        raise RefusedError(f"it is larger than {limit >> 20} MiB when unpacked")

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        name = next(name for name in (f"data/{key}", f"constants/{key}") if name in archive)
        data = archive.read(name, limit)
        if len(data) < count * dtype.itemsize:
            raise RefusedError("a tensor is larger than the data stored for it; copy or download the file again")
        return numbers_of(data, dtype)

    return read_pickle(archive.read("data.pkl", MAX_PICKLE_BYTES), storage, (*inert, *COMPILED))
