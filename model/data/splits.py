"""Division of structures into training, validation and test sets."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...pipeline.atomic import atomic_path
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
    """Disjoint training, validation and test sets of one or several stores.

    Attributes:
        training: bool[n_structures] for each store, structures to train on.
        validation: bool[n_structures] for each store, structures to validate on during training.
        test: bool[n_structures] for each store, structures for the final test; all False if there is no test set.
    """

    training: tuple[NDArray[np.bool_], ...]
    validation: tuple[NDArray[np.bool_], ...]
    test: tuple[NDArray[np.bool_], ...]

    def save(self, path: str | Path) -> None:
        """Write the split to a NumPy archive, atomically.

        The archive holds ``training_0``, ``validation_0`` and ``test_0`` (int64[n], rows of the first store),
        ``training_1``, ..., and ``n_structures`` (int64[n_stores]).
        """
        place = Path(path)
        arrays = {_SIZES: np.array([len(chosen) for chosen in self.training], dtype=np.int64)}
        for part in SUBSETS:
            for number, chosen in enumerate(getattr(self, part)):
                arrays[f"{part}_{number}"] = np.flatnonzero(chosen).astype(np.int64)
        with atomic_path(place) as scratch:
            np.savez(scratch, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path, stores: Sequence[GraphStore] | None = None) -> Split:
        """Read a split from an archive that `save` wrote.

        Args:
            path: Path of the archive.
            stores: Stores that the split must belong to; their numbers of structures are compared. None skips the
                comparison.

        Raises:
            StoreError: The file is missing, damaged or not a split, or the numbers of structures differ.
        """
        parts: dict[str, list[NDArray[np.bool_]]] = {part: [] for part in SUBSETS}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for number, size in enumerate(arrays[_SIZES].tolist()):
                    for part, found in parts.items():
                        found.append(np.zeros(size, dtype=bool))
                        found[-1][arrays[f"{part}_{number}"]] = True
        except (OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"{path} cannot be read as a split ({type(error).__name__}); use the split.npz of a run folder"
            ) from error
        sizes = [len(chosen) for chosen in parts["training"]]
        if stores is not None and sizes != [len(store) for store in stores]:
            raise StoreError(
                f"{path} belongs to stores with {sizes} structures, not {[len(store) for store in stores]}; use the "
                "stores that were split"
            )
        return cls(**{part: tuple(found) for part, found in parts.items()})


def split_structures(stores: Sequence[GraphStore], usable: Sequence[NDArray[np.bool_]], config: SplitConfig) -> Split:
    """Divide the usable structures into training, validation and test sets.

    The result does not depend on the paths of the stores. The fractions of the settings refer to all usable structures
    of all stores. How closely they are met depends on `by`:

    - ``structure``, ``stratified``: the total number of structures is exact; the number from each group is off by
      less than one for the test set and by less than two for the validation set.
    - ``composition``, ``group``: groups are considered in random order; a group is taken if it brings the number of
      structures closer to the target. Structures without a value form one group.
    - ``time``: the latest structures form the test set, and the latest of the others the validation set. Structures
      with equal times stay together. Times are compared as numbers if all of them are numbers, otherwise as text: write
      dates as 2024-05-31.

    Args:
        stores: Graph stores.
        usable: bool[n_structures] for each store, structures with a usable label.
        config: Settings of the split.

    Returns:
        Masks of the structures of each set, by store.

    Raises:
        ConfigError: There are not enough structures or groups for each part, the column does not exist, or a structure
            has no time.
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
            picked = _choose_evenly(len(order), number, int(rng.integers(len(order))))
            part[order[picked]] = chosen
            order = order[~picked]
    else:
        group, what = _number_groups(stores, rows, config)
        sizes = np.bincount(group)
        _check_number(len(sizes), what, config)
        by_time = config.by == "time"
        order = np.arange(len(sizes))[::-1] if by_time else rng.permutation(len(sizes))
        for chosen, share in ((_TEST, config.test), (_VALIDATION, config.validation)):
            if share > 0:
                leave = 2 if chosen == _TEST else 1
                taken = _choose_groups(sizes, order, max(1, round(share * len(rows))), leave, in_order=by_time)
                part[np.isin(group, taken)] = chosen
                order = order[~np.isin(order, taken)]
    return _split_by_store(part, rows, [len(known) for known in usable])


def _check_number(number: int, what: str, config: SplitConfig) -> None:
    parts = ["training", "validation", *(["test"] if config.test > 0 else [])]
    if number < len(parts):
        raise ConfigError(
            f"training.split: there are too few {what} ({number}): each part ({', '.join(parts)}) needs at least one; "
            "add structures"
        )


def _numbers(total: int, config: SplitConfig) -> tuple[int, int]:
    """Return the numbers of test and validation structures."""
    n_test = min(total - 2, max(1, round(config.test * total))) if config.test > 0 else 0
    return n_test, min(total - n_test - 1, max(1, round(config.validation * total)))


def _choose_evenly(total: int, number: int, offset: int) -> NDArray[np.bool_]:
    """Choose `number` of `total` evenly (systematic sampling): bool[total], off by less than one in any range."""
    steps = (np.arange(total + 1, dtype=np.int64) * number + offset) // total
    return np.diff(steps) > 0


def _choose_groups(
    sizes: NDArray[np.int64], order: NDArray[np.int64], target: int, leave: int, *, in_order: bool
) -> list[int]:
    """Choose at least one group, about `target` structures in total, and leave at least `leave` groups.

    A group is taken if it brings the total closer to the target. If it does not, later groups are tried; with
    `in_order`, the search stops.
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


def _number_groups(
    stores: Sequence[GraphStore], rows: NDArray[np.int64], config: SplitConfig
) -> tuple[NDArray[np.int64], str]:
    """Number the groups: int64[n], from 0 (ascending in time for `by: time`), and a name for the groups."""
    if config.by == "composition":
        formulas = np.concatenate([_formulas(store) for store in stores])
        return _groups(formulas[rows]), "formulas"
    values = _column(stores, config.key)[rows]
    if config.by == "time":
        empty = int(np.count_nonzero(values == ""))
        if empty:
            raise ConfigError(
                f"training.split: {empty:,} of {len(rows):,} structures have no {config.key!r}; add the missing "
                "values, or choose another `key`"
            )
        return _groups(_as_numbers(values)), f"times in {config.key!r}"
    return _groups(values), f"values of {config.key!r}"


def _groups(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the rank of each value among the distinct values, int64[n]."""
    inverse: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    return inverse


def _as_numbers(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Convert strings to numbers if each of them represents a finite number."""
    try:
        numbers = np.array([float(text) for text in values.tolist()])
    except ValueError:
        return values
    return numbers if np.isfinite(numbers).all() else values


def _column(stores: Sequence[GraphStore], name: str | None) -> NDArray[np.generic]:
    """Read a column of all structures of all stores as stripped text; empty where there is no value.

    Raises:
        ConfigError: A store does not have this column.
    """
    texts: list[str] = []
    for store in stores:
        spec = store.specs.get(str(name))
        if spec is None or spec.dims != (STRUCTURE,):
            columns = sorted(key for key, known in store.specs.items() if known.attrs.get("role") == "column")
            raise ConfigError(
                f"training.split.key: {store.path} has no column {name!r} (available: "
                f"{', '.join([*columns, 'source'])}); featurize the structures again with `--column {name}`"
            )
        values = store.column(str(name)).tolist()
        texts += ["" if isinstance(x, float) and math.isnan(x) else str(x).strip() for x in values]
    return np.array(texts, dtype=np.dtypes.StringDType())


def _formulas(store: GraphStore) -> NDArray[np.void]:
    """Hash each structure's reduced formula: void16[n_structures]."""
    digests: list[bytes] = []
    for counts in compositions(store):
        reduced = (counts // np.gcd.reduce(counts, axis=1)[:, None]).astype("<u2")
        distinct, place = np.unique(reduced, axis=0, return_inverse=True)
        known = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in distinct]
        digests += [known[number] for number in place.tolist()]
    return np.frombuffer(b"".join(digests), dtype="V16")


def _split_by_store(part: NDArray[np.int64], rows: NDArray[np.int64], sizes: Sequence[int]) -> Split:
    """Convert the part of each usable row (of all stores together) to masks for each store."""
    found = {}
    for number, name in enumerate(SUBSETS):
        chosen = np.zeros(sum(sizes), dtype=bool)
        chosen[rows[part == number]] = True
        found[name] = tuple(np.split(chosen, np.cumsum(sizes)[:-1]))
    return Split(**found)
