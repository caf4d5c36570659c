"""Packages of `torch.package`, such as NequIP's `.nequip.zip`.

A package is a ZIP file of source code, pickled modules and the contents of their tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....pipeline.errors import CheckpointError, detail
from . import archive
from .reader import RefusedError, numbers_of, read_pickle


class ModulePackage:
    """A package of modules.

    Args:
        path: Path of the file.
        inert: Beginnings of the dotted names of classes and functions that may occur.

    Raises:
        CheckpointError: The file is not a package, is truncated, or contains unexpected members.
    """

    def __init__(self, path: Path, inert: Sequence[str]) -> None:
        self.path, self.inert = path, tuple(inert)
        try:
            self.archive = archive.Archive(path)
        except RefusedError as error:
            raise CheckpointError(f"{path} was not imported: {error}") from error

    def text(self, name: str) -> str:
        """Read a text member, by its name in the package.

        Raises:
            CheckpointError: The member does not exist, or is damaged or too large.
        """
        return self._read(name, archive.MAX_TEXT_BYTES).decode(errors="replace")

    def unpickled(self, name: str) -> Any:
        """Read a pickled member.

        Raises:
            CheckpointError: The member does not exist, is damaged or too large, or contains something that a model does
                not need.
        """
        content = self._read(name, archive.MAX_PICKLE_BYTES)
        try:
            return read_pickle(content, self._storage, self.inert)
        except RefusedError as error:
            raise CheckpointError(f"{self.path} was not imported: {error}") from error
        except Exception as error:  # a damaged pickle can fail in any way
            raise CheckpointError(
                f"{self.path} is damaged: {name} cannot be read ({detail(error)}); copy or download it again"
            ) from error

    def _storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        size = count * dtype.itemsize
        data = self.archive.read(f".data/{key}.storage", size)
        if len(data) != size:
            raise RefusedError(f"the archive is damaged: a tensor has {len(data)} bytes instead of {size}")
        return numbers_of(data, dtype)

    def _read(self, name: str, limit: int) -> bytes:
        try:
            return self.archive.read(name, limit)
        except RefusedError as error:
            raise CheckpointError(f"{self.path} was not imported: {error}") from error
