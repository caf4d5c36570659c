"""Parts: what one task leaves on disk. A part is there as a whole or not at all, and says what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import StoreError


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a task returns and its part's commit mark holds.

    Attributes:
        number: Of the part.
        counts: How many of what: read, failed, and rows along each dim.
        sha256: Of the part's arrays.
        notes: Small facts for the run's account.
    """

    number: int
    counts: dict[str, int]
    sha256: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


def write_part(
    folder: Path, number: int, arrays: Mapping[str, NDArray[Any]], counts: dict[str, int], notes: dict[str, Any]
) -> Receipt:
    """Write the arrays of a part, then its commit mark; each appears under its name only when complete.

    Two tasks that write the same part do no harm: both write the same.
    """
    data = _array_path(folder, number)
    scratch = data.with_name(f".{data.name}.{uuid.uuid4().hex}")
    with scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    with scratch.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    scratch.rename(data)
    receipt = Receipt(number, counts, sha256, notes)
    write_text_atomically(_mark_path(folder, number), json.dumps(asdict(receipt)))
    return receipt


def committed(folder: Path) -> dict[int, Receipt]:
    """The receipts of all parts in a folder that are complete, by number.

    A part whose arrays do not have the checksum of its mark is left out, so that it is made again.
    """
    receipts = {}
    for mark in sorted(folder.glob("[0-9]*.json")):
        receipt = Receipt(**json.loads(mark.read_text()))
        data = _array_path(folder, receipt.number)
        if not data.exists():
            continue
        with data.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == receipt.sha256:
                receipts[receipt.number] = receipt
    return receipts


def read_part(folder: Path, number: int, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of a part.

    Raises:
        StoreError: The part is missing or damaged.
    """
    path = _array_path(folder, number)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); run the same command again") from error


def text_array(values: Iterable[str]) -> NDArray[np.str_]:
    """Strings as a part keeps them, of fixed width: they need no pickle."""
    # A NUL would end a numpy string early.
    listed = [value.replace("\0", "") for value in values]
    return np.array(listed, dtype=np.str_) if listed else np.array([], dtype="U1")


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file that appears under its name only when complete."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)


def _array_path(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}.npz"


def _mark_path(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}.json"
