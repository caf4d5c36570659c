"""Which structures are trained on, which are validated on while training, and which are kept for one last test."""

from __future__ import annotations

import hashlib
import math
import os
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import STRUCTURE
from ..config.training import SplitConfig
from .batches import compositions

SUBSETS = ("training", "validation", "test")
_TRAINING, _VALIDATION, _TEST = range(3)
_SIZES = "n_structures"


@dataclass(frozen=True)
class Split:
    """The parts of one or several stores; no structure is in two of them.

    Attributes:
        training: bool[n_structures] for each store.
        validation: Likewise.
        test: Likewise; none where no test is wanted.
    """

    training: tuple[NDArray[np.bool_], ...]
    validation: tuple[NDArray[np.bool_], ...]
    test: tuple[NDArray[np.bool_], ...]

    def save(self, path: str | Path) -> None:
        """Write a numpy archive, which appears under its name only when complete.

        It holds ``training_0``, ``validation_0``, ``test_0`` (int64[n], rows of the first store), ``training_1``, ...
        and ``n_structures`` (int64[n_stores]).
        """
        place = Path(path)
        arrays = {_SIZES: np.array([len(chosen) for chosen in self.training], dtype=np.int64)}
        for part in SUBSETS:
            for number, chosen in enumerate(getattr(self, part)):
                arrays[f"{part}_{number}"] = np.flatnonzero(chosen).astype(np.int64)
        scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(place)

    @classmethod
    def load(cls, path: str | Path, stores: Sequence[GraphStore] | None = None) -> Split:
        """Read what `save` has written.

        Args:
            path: The archive.
            stores: That it should be of, to compare the numbers of their structures.

        Raises:
            StoreError: Missing, damaged, another file, or of other stores.
        """
        parts: dict[str, list[NDArray[np.bool_]]] = {part: [] for part in SUBSETS}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for number, size in enumerate(arrays[_SIZES].tolist()):
                    for part, found in parts.items():
                        found.append(np.zeros(size, dtype=bool))
                        found[-1][arrays[f"{part}_{number}"]] = True
        except (OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path}: no split of ours, or damaged ({type(error).__name__})") from error
        sizes = [len(chosen) for chosen in parts["training"]]
        if stores is not None and sizes != [len(store) for store in stores]:
            raise StoreError(f"{path}: is of stores of {sizes} structures, not of {[len(store) for store in stores]}")
        return cls(**{part: tuple(found) for part, found in parts.items()})


def split_structures(stores: Sequence[GraphStore], usable: Sequence[NDArray[np.bool_]], config: SplitConfig) -> Split:
    """Divide the usable structures; the same for the same structures, choice and configuration, wherever stores lie.

    Shares are those of all usable structures of all stores, as near as whole structures, or whole groups, come to them:

    - ``structure``, ``stratified``: the number of structures is met to the last one, and in each group it is off by
      less than one for the test, and less than two for the validation.
    - ``composition``, ``group``: groups are taken in random order, each if it brings the number of structures nearer to
      what is wanted. Structures without a value are one group.
    - ``time``: the latest are the test, those before them the validation. All structures of one time stay together.
      Times that can all be read as numbers are compared as such, all others as text: dates should read 2024-05-31.

    Args:
        stores: Of the structures.
        usable: bool[n_structures] for each store.
        config: How.

    Raises:
        ConfigError: Too few structures, or groups, for each part to have one; no such column; a structure without a
            time.
    """
    rows = np.flatnonzero(np.concatenate(list(usable)))
    rng = np.random.default_rng(config.seed)
    part = np.full(len(rows), _TRAINING)
    if config.by in ("structure", "stratified"):
        group = _groups(_column(stores, config.key)[rows]) if config.key is not None else np.zeros(len(rows), np.int64)
        _check_number(len(rows), "labelled structures", config)
        n_test, n_validation = _numbers(len(rows), config)
        order = np.lexsort((rng.permutation(len(rows)), group))
        for chosen, number in ((_TEST, n_test), (_VALIDATION, n_validation)):
            picked = _evenly(len(order), number, int(rng.integers(len(order))))
            part[order[picked]] = chosen
            order = order[~picked]
    else:
        group, what = _whole_groups(stores, rows, config)
        sizes = np.bincount(group)
        _check_number(len(sizes), what, config)
        by_time = config.by == "time"
        order = np.arange(len(sizes))[::-1] if by_time else rng.permutation(len(sizes))
        for chosen, share in ((_TEST, config.test), (_VALIDATION, config.validation)):
            if share > 0:
                leave = 2 if chosen == _TEST else 1
                taken = _nearest(sizes, order, max(1, round(share * len(rows))), leave, in_order=by_time)
                part[np.isin(group, taken)] = chosen
                order = order[~np.isin(order, taken)]
    return _placed(part, rows, [len(known) for known in usable])


def _check_number(number: int, what: str, config: SplitConfig) -> None:
    parts = ["training", "validation", *(["test"] if config.test > 0 else [])]
    if number < len(parts):
        raise ConfigError(f"training.split: {number} {what}; {', '.join(parts)} need one each")


def _numbers(total: int, config: SplitConfig) -> tuple[int, int]:
    """Structures to test and to validate on."""
    n_test = min(total - 2, max(1, round(config.test * total))) if config.test > 0 else 0
    return n_test, min(total - n_test - 1, max(1, round(config.validation * total)))


def _evenly(total: int, number: int, offset: int) -> NDArray[np.bool_]:
    """bool[total], `number` of them, of each stretch its share to less than one (systematic sampling)."""
    steps = (np.arange(total + 1, dtype=np.int64) * number + offset) // total
    return np.diff(steps) > 0


def _nearest(
    sizes: NDArray[np.int64], order: NDArray[np.int64], target: int, leave: int, *, in_order: bool
) -> list[int]:
    """Groups that hold about `target` structures together, one at least, so that `leave` groups stay.

    Each group is taken if the number comes nearer to the target with it than without. Where it does not, the ones
    behind it are tried, or with `in_order` none.
    """
    taken: list[int] = []
    held = 0
    for group in order.tolist():
        if len(taken) == len(order) - leave:
            break
        size = int(sizes[group])
        if abs(held + size - target) < abs(held - target):
            taken.append(group)
            held += size
        elif in_order:
            break
    if taken:
        return taken
    return [int(order[0] if in_order else order[np.argmin(sizes[order])])]


def _whole_groups(
    stores: Sequence[GraphStore], rows: NDArray[np.int64], config: SplitConfig
) -> tuple[NDArray[np.int64], str]:
    """int64[n], the group of each structure, from 0, ascending with the time if it is by that; and what groups are."""
    if config.by == "composition":
        formulas = np.concatenate([_formulas(store) for store in stores])
        return _groups(formulas[rows]), "formulas"
    values = _column(stores, config.key)[rows]
    if config.by == "time":
        empty = int(np.count_nonzero(values == ""))
        if empty:
            raise ConfigError(f"training.split: {empty:,} of {len(rows):,} structures have no {config.key!r}")
        return _groups(_as_numbers(values)), f"times in {config.key!r}"
    return _groups(values), f"values of {config.key!r}"


def _groups(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """int64[n], the place of each value among the different ones, ascending."""
    inverse: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    return inverse


def _as_numbers(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Texts as numbers if all of them are finite ones."""
    try:
        numbers = np.array([float(text) for text in values.tolist()])
    except ValueError:
        return values
    return numbers if np.isfinite(numbers).all() else values


def _column(stores: Sequence[GraphStore], name: str | None) -> NDArray[np.generic]:
    """Text of all structures of all stores, without blanks around it; empty where there is none.

    Raises:
        ConfigError: A store has no such column.
    """
    texts: list[str] = []
    for store in stores:
        spec = store.specs.get(str(name))
        if spec is None or spec.dims != (STRUCTURE,):
            columns = sorted(key for key, known in store.specs.items() if known.attrs.get("role") == "column")
            raise ConfigError(
                f"training.split.key: {store.path} has no column {name!r} (there are: "
                f"{', '.join([*columns, 'source'])}); `featurize --column {name}` carries one along"
            )
        values = store.column(str(name)).tolist()
        texts += ["" if isinstance(x, float) and math.isnan(x) else str(x).strip() for x in values]
    return np.array(texts, dtype=np.dtypes.StringDType())


def _formulas(store: GraphStore) -> NDArray[np.void]:
    """Void16[n_structures], a digest of each structure's reduced formula."""
    digests: list[bytes] = []
    for counts in compositions(store):
        reduced = (counts // np.gcd.reduce(counts, axis=1)[:, None]).astype("<u2")
        different, place = np.unique(reduced, axis=0, return_inverse=True)
        known = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in different]
        digests += [known[number] for number in place.tolist()]
    return np.frombuffer(b"".join(digests), dtype="V16")


def _placed(part: NDArray[np.int64], rows: NDArray[np.int64], sizes: Sequence[int]) -> Split:
    """Parts of the rows of all stores as choices in each of them."""
    found = {}
    for number, name in enumerate(SUBSETS):
        chosen = np.zeros(sum(sizes), dtype=bool)
        chosen[rows[part == number]] = True
        found[name] = tuple(np.split(chosen, np.cumsum(sizes)[:-1]))
    return Split(**found)
