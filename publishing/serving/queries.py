"""Queries to a scores dataset: which rows meet the conditions, and in which order."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ...pipeline.errors import ConfigError
from ...pipeline.store.schema import TEXT
from ...pipeline.suggestions import unknown_name
from ...screening.chemistry.composition import Compositions
from ...screening.chemistry.elements import elements_of, parse_elements
from ...screening.dataset.default_ranking import default_ranking
from ...screening.dataset.reader import ScoresReader
from ...screening.selection.filter_expression import parse_filter
from ...screening.selection.variables import numeric_column, variables_of

# Largest dataset that is served: a query compares every row.
MAX_SERVED_ROWS = 20_000_000
# Bounds of one answer and of one query.
MAX_PAGE_ROWS, MAX_WHERE, MAX_TEXT = 10_000, 1_000, 1_000
# Memory for the columns and orders that are kept between queries, bytes.
_KEPT_BYTES = 2 << 30
# Bits of a set of elements: two words of 64 bits for 118 elements.
_WORD = 64
# Columns that are left out of an answer unless the query names them, as are columns with several values per structure
# and the columns that the user kept from the sources.
_NOT_SHOWN = frozenset({"source", "source_index"})


class Conditions(BaseModel):
    """Conditions on the rows, sort order and page number; a row must meet all conditions, and empty ones are ignored.

    The attributes are the parameters of a request, and their descriptions are part of the OpenAPI document.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field("", max_length=MAX_TEXT, description="id of the structure")
    formula: str = Field("", max_length=MAX_TEXT, description="chemical formula; Fe2O3 and O6Fe4 find the same")
    chemical_system: str = Field("", max_length=MAX_TEXT, description="exactly these elements: Al-Ni-O")
    elements: str = Field("", max_length=MAX_TEXT, description="all of these elements, and perhaps others: Li,O")
    any_elements: str = Field("", max_length=MAX_TEXT, description="at least one of these elements")
    allowed_elements: str = Field("", max_length=MAX_TEXT, description="no elements other than these")
    excluded_elements: str = Field("", max_length=MAX_TEXT, description="none of these elements")
    where: str = Field(
        "",
        max_length=MAX_WHERE,
        description="ranges and other conditions on columns, in the language of `equiscreen select --where`: "
        '0 <= energy_above_hull < 0.05 and n_atoms <= 20 and status == "ok"',
    )
    sort: str = Field(
        "",
        max_length=MAX_TEXT,
        description="column to sort by, lowest first; -column for highest first. By default the energy above hull or, "
        "without a hull, the formation energy",
    )
    page: int = Field(1, ge=1, le=MAX_SERVED_ROWS, description="number of the page, from 1")


class Query(Conditions):
    """Conditions, and the size, columns and format of the answer."""

    page_size: int = Field(100, ge=1, le=MAX_PAGE_ROWS, description="rows per page")
    columns: str = Field(
        "",
        max_length=MAX_WHERE,
        description="columns to return, such as formula,energy_above_hull; by default all that hold one value per "
        "structure",
    )
    format: Literal["json", "csv", "arrow"] = Field("json", description="format of the answer: json, csv or arrow")


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a query.

    Attributes:
        total: Number of rows that meet the conditions.
        rows: int64[n], rows of the requested page.
        sorted_by: Column by which the rows are sorted, as in `Conditions.sort`; empty for the order of the dataset.
    """

    total: int
    rows: NDArray[np.int64]
    sorted_by: str


class ServedScores:
    """A scores dataset with the columns that queries need in memory.

    Args:
        reader: The dataset.

    Attributes:
        reader: The dataset.
        variables: Columns as variables of filter expressions, by name.
        shown: Columns of an answer if the query names none.
        default_sort: Column that answers are sorted by if a query names none; empty if energies cannot be compared.

    Raises:
        ConfigError: The dataset is too large.
    """

    def __init__(self, reader: ScoresReader) -> None:
        if len(reader) > MAX_SERVED_ROWS:
            raise ConfigError(
                f"{reader.path} has {len(reader):,} structures, more than the {MAX_SERVED_ROWS:,} that can be served; "
                "serve a selection of them (`equiscreen select`), or publish the dataset (`equiscreen publish`)"
            )
        self.reader = reader
        self.variables = variables_of(reader)
        self.shown = [
            name
            for name, spec in reader.specs.items()
            if len(spec.dims) == 1 and name not in _NOT_SHOWN and spec.attrs.get("role") != "column"
        ]
        self.default_sort = default_ranking(reader) or ""
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._loading = threading.RLock()

    def __len__(self) -> int:
        return len(self.reader)

    def column(self, name: str) -> NDArray[Any]:
        """Return a whole column.

        Raises:
            ConfigError: There is no such column.
            StoreError: The column cannot be read.
        """
        if name not in self.reader.specs:
            raise ConfigError(unknown_name("column", name[:MAX_TEXT], self.reader.specs))
        return self._keep(name, lambda: self.reader.column(name, 0, len(self)))

    def find(self, query: Conditions, page_size: int) -> Found:
        """Return the rows that meet some conditions.

        Args:
            query: The conditions.
            page_size: Maximum number of rows.

        Raises:
            ConfigError: A condition is invalid.
            StoreError: The dataset cannot be read.
        """
        good = self._meeting(query)
        sort = query.sort.strip() or self.default_sort
        if sort:
            order = self._order(sort)
            rows = order if good is None else order[good[order]]
        else:
            rows = np.arange(len(self)) if good is None else np.flatnonzero(good)
        first = (query.page - 1) * page_size
        return Found(len(rows), rows[first : first + page_size], sort)

    def _meeting(self, query: Conditions) -> NDArray[np.bool_] | None:
        """Return which rows meet the conditions of a query: bool[n]; None for all rows."""
        parts: list[NDArray[np.bool_]] = []
        if query.where.strip():
            condition = parse_filter(query.where, self.variables)
            parts.append(condition.holds({name: self.column(name) for name in condition.names}, len(self)))
        if query.id:
            parts.append(self.column("structure_id") == query.id)
        if query.formula.strip():
            known = Compositions()
            parts.append(self.column("formula") == known.formula(known.of_formula(query.formula)))
        parts.extend(self._of_elements(query))
        return np.logical_and.reduce(parts) if parts else None

    def _of_elements(self, query: Conditions) -> list[NDArray[np.bool_]]:
        """Return which rows meet each condition on the elements: bool[n] each."""
        parts: list[NDArray[np.bool_]] = []
        system = _bits(query.chemical_system.replace("-", ","))
        required, some = _bits(query.elements), _bits(query.any_elements)
        allowed, excluded = _bits(query.allowed_elements), _bits(query.excluded_elements)
        if system.any():
            parts.append(np.all(self._elements() == system, axis=1))
        if required.any():
            parts.append(np.all((self._elements() & required) == required, axis=1))
        if some.any():
            parts.append(np.any(self._elements() & some, axis=1))
        if allowed.any():
            parts.append(~np.any(self._elements() & ~allowed, axis=1))
        if excluded.any():
            parts.append(~np.any(self._elements() & excluded, axis=1))
        return parts

    def _elements(self) -> NDArray[np.uint64]:
        """Return the elements of every structure, one bit each: uint64[n, 2]."""

        def read() -> NDArray[Any]:
            numbers: dict[str, int] = {}
            places = np.fromiter(
                (numbers.setdefault(one, len(numbers)) for one in self.reader.column("formula", 0, len(self)).tolist()),
                dtype=np.int64,
                count=len(self),
            )
            sets = np.zeros((len(numbers), 2), dtype=np.uint64)
            for formula, number in numbers.items():
                try:
                    sets[number] = _bits_of(elements_of(formula))
                except ConfigError:  # a structure that could not be scored may have no formula
                    continue
            return sets[places]

        return self._keep(("elements",), read)

    def _order(self, sort: str) -> NDArray[np.int64]:
        """Return all rows in the order of a column: int64[n].

        Columns of numbers are sorted as in a selection: rows whose status marks their values as unreliable come after
        all others, missing values are last, and equal values are in the order of the dataset. Text is sorted
        alphabetically.
        """
        name, descending = sort.removeprefix("-").strip(), sort.startswith("-")
        if name not in self.reader.specs:
            raise ConfigError(unknown_name("column", name[:MAX_TEXT], self.reader.specs))
        is_text = self.reader.specs[name].dtype == TEXT
        if not is_text:
            numeric_column(self.reader, name)

        def read() -> NDArray[Any]:
            values = self.column(name)
            if is_text:
                order = np.argsort(values, kind="stable")
                return order[::-1].copy() if descending else order
            numbers = values.astype(np.float64)
            last = ~self.reader.is_ranked(self.column("status"))
            return np.lexsort((-numbers if descending else numbers, last))

        return self._keep(("order", name, descending), read)

    def _keep(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return a kept array, or read and keep it; the least recently used arrays are dropped to make room."""
        with self._loading:  # so that many clients at once read a column only once; an order needs columns
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
            made = self._kept[key] = read()
            while sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
            return made


def _bits(text: str) -> NDArray[np.uint64]:
    """Return the elements of a comma-separated list as bits: uint64[2].

    Raises:
        ConfigError: The text is not a list of elements.
    """
    return _bits_of(parse_elements([text]))


def _bits_of(elements: frozenset[int]) -> NDArray[np.uint64]:
    words = [0, 0]
    for number in elements:
        words[number // _WORD] |= 1 << (number % _WORD)
    return np.array(words, dtype=np.uint64)
