"""Terms of a filter: checked parts of an expression that compute their values from columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Kind(StrEnum):
    """Kind of the values of a variable or an expression."""

    NUMBER = "a number"
    TEXT = "text"
    FLAG = "a flag"
    TRUTH = "a true/false value"


# Kind of the result, function, and the smallest and largest number of arguments. NaN in any argument of min and max
# makes the result NaN: missing values are not skipped.
FUNCTIONS: dict[str, tuple[Kind, Callable[..., Any], int, int]] = {
    "abs": (Kind.NUMBER, np.abs, 1, 1),
    "min": (Kind.NUMBER, np.minimum, 2, 16),
    "max": (Kind.NUMBER, np.maximum, 2, 16),
    "isnan": (Kind.TRUTH, np.isnan, 1, 1),
}


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a filter.

    Attributes:
        kind: Kind of its values.
        meanings: Value that each word stands for, if it is a flag.
        refusal: Why the variable cannot be used; empty if it can.
    """

    kind: Kind
    meanings: Mapping[str, int] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Term:
    """A checked part of an expression.

    Attributes:
        kind: Kind of the term's values.
        place: Position of the term's first character in the text.
        names: Variables that the term needs.
        values: Function that computes the term from the columns of these variables.
        literal: Value of the term, if it is a number or text literal.
        meanings: Value that each word stands for, if it is a flag.
    """

    kind: Kind
    place: int
    names: frozenset[str]
    values: Callable[[Mapping[str, NDArray[Any]]], Any]
    literal: float | str | None = None
    meanings: Mapping[str, int] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Words of a flag, each in quotes."""
        return ", ".join(f'"{meaning}"' for meaning in self.meanings)


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition that is true or false for each structure.

    A comparison with NaN is false, except ``!=``, which is true; use ``isnan`` to test for NaN.

    Attributes:
        text: The expression as written.
        conjuncts: Conditions that must all hold: the operands of the outermost ``and``.
    """

    text: str
    conjuncts: tuple[Term, ...]

    @property
    def names(self) -> frozenset[str]:
        """Variables that the filter needs."""
        return _names(self.conjuncts)

    def divided(self, late: frozenset[str]) -> tuple[Filter, Filter]:
        """Split into conditions that do not need any of the variables `late`, and the others."""
        early = tuple(term for term in self.conjuncts if not term.names & late)
        others = tuple(term for term in self.conjuncts if term.names & late)
        return Filter(self.text, early), Filter(self.text, others)

    def holds(self, columns: Mapping[str, NDArray[Any]], size: int) -> NDArray[np.bool_]:
        """Return the rows for which the filter holds: bool[size].

        Args:
            columns: Rows of each variable in `names`.
            size: Number of rows.
        """
        found = np.ones(size, dtype=bool)
        with np.errstate(all="ignore"):  # a division by zero gives infinity, which is not an error here
            for term in self.conjuncts:
                found &= np.broadcast_to(np.asarray(term.values(columns), dtype=bool), (size,))
        return found


def _names(terms: Iterable[Term]) -> frozenset[str]:
    return frozenset[str]().union(*(term.names for term in terms))


def constant(kind: Kind, place: int, value: float | str) -> Term:
    """Return the term of a literal, or of a word of a flag."""
    return Term(kind, place, frozenset(), lambda _: value, None if kind == Kind.TRUTH else value)


def applied(kind: Kind, place: int, term: Term, function: Callable[[Any], Any]) -> Term:
    """Return the term that applies a function to another term."""
    return Term(kind, place, term.names, lambda columns: function(term.values(columns)))


def reduced(kind: Kind, terms: Sequence[Term], operation: Callable[[Any, Any], Any]) -> Term:
    """Return the term of an operation on several terms, from left to right."""
    if len(terms) == 1:
        return terms[0]
    return Term(
        kind,
        terms[0].place,
        _names(terms),
        lambda columns: reduce(operation, (term.values(columns) for term in terms)),
    )


def is_among(values: Any, wanted: list[Any]) -> Any:
    """Return which values are in the list."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "TO":
        words = set(wanted)
        return np.fromiter((value in words for value in values.tolist()), dtype=bool, count=len(values))
    return np.isin(values, wanted)
