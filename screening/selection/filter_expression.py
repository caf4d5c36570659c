"""Filter expressions: ``energy_above_hull < 0.05 and n_atoms <= 20``, in a small grammar of their own.

They are read by the parser below and never handed to Python: there are comparisons, ``and``, ``or``, ``not``,
arithmetic, ``in [...]``, four functions, and nothing else. What a name may be is known before anything is evaluated, so
that a typo, or text compared with a number, is told with its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.suggestions import unknown_name

MAX_LENGTH = 10_000
MAX_DEPTH = 50
MAX_POWER = 16
FUNCTIONS = {"abs": (1, 1), "isnan": (1, 1), "min": (2, 16), "max": (2, 16)}
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_SUMS: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}
_WORDS = {"and", "or", "not", "in", "true", "false"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<text>\"[^\"\n]*\"|'[^'\n]*')"
    r"|(?P<sign>\*\*|<=|>=|==|!=|[-+*/<>(),\[\]]))"
)


class Kind(StrEnum):
    """What the values of a variable or expression are."""

    NUMBER = "a number"
    TEXT = "text"
    FLAG = "one of some words"
    TRUTH = "true or false"


@dataclass(frozen=True, slots=True)
class Variable:
    """What a name in a filter stands for.

    Attributes:
        kind: Of its values.
        meanings: Of a flag, the value behind each word.
        refusal: Why it cannot be used; empty if it can.
    """

    kind: Kind
    meanings: Mapping[str, int] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Term:
    """A part of an expression.

    Attributes:
        kind: Of its values.
        place: Where it begins in the text.
        names: The variables that it needs.
        values: Computes it from them.
        literal: Its value, if it stands in the text.
        meanings: Of a flag.
    """

    kind: Kind
    place: int
    names: frozenset[str]
    values: Callable[[Mapping[str, NDArray[Any]]], Any]
    literal: float | str | None = None
    meanings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filter:
    """An expression that is true or false for each structure.

    A comparison with NaN is false but for ``!=``, which is true; ``isnan`` asks for it.

    Attributes:
        text: As it was given.
        conjuncts: Conditions that all have to hold: what the outermost ``and`` joins.
    """

    text: str
    conjuncts: tuple[Term, ...]

    @property
    def names(self) -> frozenset[str]:
        """The variables that it needs."""
        return frozenset[str]().union(*(term.names for term in self.conjuncts))

    def divided(self, late: frozenset[str]) -> tuple[Filter, Filter]:
        """The conditions that need none of some variables, and the others."""
        early = tuple(term for term in self.conjuncts if not term.names & late)
        others = tuple(term for term in self.conjuncts if term.names & late)
        return Filter(self.text, early), Filter(self.text, others)

    def holds(self, columns: Mapping[str, NDArray[Any]], size: int) -> NDArray[np.bool_]:
        """For which rows it holds: bool[size].

        Args:
            columns: The rows of each variable in `names`.
            size: Number of rows.
        """
        found = np.ones(size, dtype=bool)
        with np.errstate(all="ignore"):  # a division by zero is an infinity, and no accident
            for term in self.conjuncts:
                found &= np.broadcast_to(np.asarray(term.values(columns), dtype=bool), (size,))
        return found


def parse_filter(text: str, variables: Mapping[str, Variable]) -> Filter:
    """Read a filter.

    Args:
        text: For example ``energy_above_hull < 0.05 and status == "ok"``.
        variables: What names may stand for.

    Raises:
        ConfigError: It is none; the message says where and why.
    """
    return _Parser(text, variables).parse()


@dataclass(frozen=True, slots=True)
class _Token:
    sort: str
    text: str
    place: int


class _Parser:
    """Recursive descent; the methods go from what binds loosest to what binds tightest."""

    def __init__(self, text: str, variables: Mapping[str, Variable]) -> None:
        self.text, self.variables = text, variables
        if len(text) > MAX_LENGTH:
            raise ConfigError(f"--where has {len(text):,} characters, more than {MAX_LENGTH:,}; select twice")
        self.tokens = list(self._tokens())
        self.at, self.depth = 0, 0

    def parse(self) -> Filter:
        if self._next().sort == "end":
            raise self._wrong(0, "an empty filter")
        conjuncts = [self._negation()]
        while self._taken("and"):
            conjuncts.append(self._negation())
        if self._next().text == "or":  # what was read so far is one of several alternatives
            self.at = 0
            conjuncts = [self._alternatives()]
        token = self._next()
        if token.sort != "end":
            raise self._wrong(token.place, f"{token.text!r} was not expected")
        return Filter(self.text, tuple(self._truth(term) for term in conjuncts))

    def _tokens(self) -> Iterator[_Token]:
        place, end = 0, len(self.text.rstrip())
        while place < end:
            found = _TOKEN.match(self.text, place)
            if found is None or found.lastgroup is None:
                begin = place + len(self.text[place:]) - len(self.text[place:].lstrip())
                raise self._wrong(begin, self._refused(begin))
            yield _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
            place = found.end()
        yield _Token("end", "", len(self.text))

    def _refused(self, place: int) -> str:
        sign = self.text[place]
        cures = {
            "=": "one = says nothing; compare with ==",
            "&": "& is no word of a filter; say `and`",
            "|": "| is no word of a filter; say `or`",
            "!": "! is no word of a filter; say `not`, or !=",
            ".": "attributes are no part of a filter",
            '"': "a text that does not end",
            "'": "a text that does not end",
        }
        return cures.get(sign, f"{sign!r} is no part of a filter")

    def _wrong(self, place: int, what: str) -> ConfigError:
        return ConfigError(f"--where, at character {place + 1} of {' '.join(self.text.split())[:200]!r}: {what}")

    def _next(self) -> _Token:
        return self.tokens[self.at]

    def _take(self) -> _Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def _taken(self, *texts: str) -> bool:
        token = self._next()
        found = token.sort in ("sign", "name") and token.text in texts
        self.at += found
        return found

    def _expect(self, text: str, why: str) -> None:
        token = self._next()
        if not self._taken(text):
            raise self._wrong(token.place, f"{text!r} is missing {why}")

    def _deeper(self, place: int) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._wrong(place, f"nested more than {MAX_DEPTH} deep")

    def _alternatives(self) -> Term:
        self._deeper(self._next().place)
        terms = [self._conjunction()]
        while self._taken("or"):
            terms.append(self._conjunction())
        self.depth -= 1
        return self._joined(terms, np.logical_or)

    def _conjunction(self) -> Term:
        terms = [self._negation()]
        while self._taken("and"):
            terms.append(self._negation())
        return self._joined(terms, np.logical_and)

    def _joined(self, terms: list[Term], how: Callable[[Any, Any], Any]) -> Term:
        if len(terms) == 1:
            return terms[0]
        checked = [self._truth(term) for term in terms]
        return Term(
            Kind.TRUTH,
            checked[0].place,
            frozenset[str]().union(*(term.names for term in checked)),
            lambda columns: reduce(how, (term.values(columns) for term in checked)),
        )

    def _truth(self, term: Term) -> Term:
        if term.kind != Kind.TRUTH:
            raise self._wrong(term.place, f"{term.kind} where a condition is wanted; compare it with something")
        return term

    def _negation(self) -> Term:
        token = self._next()
        if not self._taken("not"):
            return self._comparison()
        self._deeper(token.place)
        term = self._truth(self._negation())
        self.depth -= 1
        return Term(Kind.TRUTH, token.place, term.names, lambda columns: np.logical_not(term.values(columns)))

    def _comparison(self) -> Term:
        left = self._sum()
        found: list[Term] = []
        while self._next().sort == "sign" and self._next().text in _ORDERS:
            sign = self._take()
            right = self._sum()
            found.append(self._compared(left, sign, right))
            left = right
        if found:
            return self._joined(found, np.logical_and)
        negated = self._next().text == "not" and self.tokens[min(self.at + 1, len(self.tokens) - 1)].text == "in"
        self.at += negated
        return self._membership(left, negated=negated) if self._taken("in") else left

    def _compared(self, left: Term, sign: _Token, right: Term) -> Term:
        left, right = self._as_flags(left, right)
        kinds = {left.kind, right.kind}
        if len(kinds) > 1:
            raise self._wrong(sign.place, f"{left.kind} cannot be compared with {right.kind}")
        if left.kind != Kind.NUMBER and sign.text not in ("==", "!="):
            raise self._wrong(sign.place, f"{left.kind} has no order; compare with == or !=")
        order = _ORDERS[sign.text]
        return Term(
            Kind.TRUTH,
            left.place,
            left.names | right.names,
            lambda columns: order(left.values(columns), right.values(columns)),
        )

    def _as_flags(self, left: Term, right: Term) -> tuple[Term, Term]:
        """Words that are compared with a flag become its values."""
        for flag, word in ((left, right), (right, left)):
            if flag.kind == Kind.FLAG and isinstance(word.literal, str):
                value = self._meaning(flag, word)
                term = Term(Kind.FLAG, word.place, frozenset(), lambda _, value=value: value)  # type: ignore[misc]
                return (flag, term) if flag is left else (term, flag)
        if Kind.FLAG in (left.kind, right.kind):
            flag = left if left.kind == Kind.FLAG else right
            raise self._wrong(flag.place, f"is compared with a word in quotes: {_quoted(flag.meanings)}")
        return left, right

    def _meaning(self, flag: Term, word: Term) -> int:
        literal = str(word.literal)
        if literal not in flag.meanings:
            raise self._wrong(word.place, f"{literal!r} is none of its words: {_quoted(flag.meanings)}")
        return flag.meanings[literal]

    def _membership(self, term: Term, *, negated: bool) -> Term:
        self._expect("[", "behind `in`")
        items = [self._literal()]
        while self._taken(","):
            items.append(self._literal())
        self._expect("]", "at the end of the list")
        if term.kind == Kind.TRUTH:
            raise self._wrong(term.place, "a condition cannot be in a list")
        if term.kind == Kind.FLAG:
            wanted: list[Any] = [self._meaning(term, item) for item in items]
        else:
            for item in items:
                if item.kind != term.kind:
                    raise self._wrong(item.place, f"{item.kind} in a list of what is {term.kind}")
            wanted = [item.literal for item in items]
        return Term(
            Kind.TRUTH,
            term.place,
            term.names,
            lambda columns: np.logical_xor(_is_among(term.values(columns), wanted), negated),
        )

    def _literal(self) -> Term:
        begin = self._next().place
        negative = self._taken("-")
        token = self._take()
        if token.sort == "number":
            value = -float(token.text) if negative else float(token.text)
            return Term(Kind.NUMBER, begin, frozenset(), lambda _: value, value)
        if token.sort != "text" or negative:
            raise self._wrong(begin, "a list holds numbers or words in quotes")
        text = token.text[1:-1]
        return Term(Kind.TEXT, begin, frozenset(), lambda _: text, text)

    def _sum(self) -> Term:
        left = self._product()
        while self._next().text in ("+", "-") and self._next().sort == "sign":
            sign = self._take()
            left = self._computed(left, sign, self._product())
        return left

    def _product(self) -> Term:
        left = self._signed()
        while self._next().text in ("*", "/") and self._next().sort == "sign":
            sign = self._take()
            left = self._computed(left, sign, self._signed())
        return left

    def _signed(self) -> Term:
        sign = self._next()
        if not self._taken("-", "+"):
            return self._power()
        self._deeper(sign.place)
        term = self._number(self._signed())
        self.depth -= 1
        if sign.text == "+":
            return term
        return Term(Kind.NUMBER, sign.place, term.names, lambda columns: np.negative(term.values(columns)))

    def _power(self) -> Term:
        base = self._operand()
        if self._next().text != "**":
            return base
        sign = self._take()
        begin = self._next().place
        self._deeper(begin)
        exponent = self._number(self._signed())
        self.depth -= 1
        with np.errstate(all="ignore"):
            fits = not exponent.names and abs(float(exponent.values({}))) <= MAX_POWER
        if not fits:
            raise self._wrong(begin, f"an exponent is a number of at most {MAX_POWER}")
        return self._computed(base, sign, exponent)

    def _computed(self, left: Term, sign: _Token, right: Term) -> Term:
        self._number(left)
        self._number(right)
        how = _SUMS[sign.text]
        return Term(
            Kind.NUMBER,
            left.place,
            left.names | right.names,
            lambda columns: how(left.values(columns), right.values(columns)),
        )

    def _number(self, term: Term) -> Term:
        if term.kind != Kind.NUMBER:
            raise self._wrong(term.place, f"{term.kind} where a number is wanted")
        return term

    def _operand(self) -> Term:
        token = self._next()
        if token.sort in ("number", "text"):
            return self._literal()
        if self._taken("("):
            term = self._alternatives()
            self._expect(")", f"for the one at character {token.place + 1}")
            return term
        if token.sort != "name" or token.text in ("and", "or", "not", "in"):
            raise self._wrong(token.place, f"{token.text!r} was not expected" if token.text else "something is missing")
        self._take()
        if token.text in ("true", "false"):
            truth = token.text == "true"
            return Term(Kind.TRUTH, token.place, frozenset(), lambda _: truth)
        return self._function(token) if self._next().text == "(" else self._variable(token)

    def _function(self, token: _Token) -> Term:
        if token.text not in FUNCTIONS:
            raise self._wrong(token.place, f"{token.text!r} is no function of a filter: {', '.join(FUNCTIONS)}")
        self._take()
        self._deeper(token.place)
        given = [self._number(self._sum())]
        while self._taken(","):
            given.append(self._number(self._sum()))
        self._expect(")", f"for {token.text}(")
        self.depth -= 1
        least, most = FUNCTIONS[token.text]
        if not least <= len(given) <= most:
            raise self._wrong(token.place, f"{token.text} takes {least if least == most else f'{least} or more'}")
        names = frozenset[str]().union(*(term.names for term in given))
        if token.text == "isnan":
            return Term(Kind.TRUTH, token.place, names, lambda columns: np.isnan(given[0].values(columns)))
        if token.text == "abs":
            return Term(Kind.NUMBER, token.place, names, lambda columns: np.abs(given[0].values(columns)))
        # As in a comparison, what is NaN makes the result NaN.
        how = np.minimum if token.text == "min" else np.maximum
        return Term(
            Kind.NUMBER, token.place, names, lambda columns: reduce(how, (term.values(columns) for term in given))
        )

    def _variable(self, token: _Token) -> Term:
        name = token.text
        variable = self.variables.get(name)
        if variable is None:
            raise self._wrong(token.place, unknown_name("name", name, [*self.variables, *_WORDS]))
        if variable.refusal:
            raise self._wrong(token.place, f"{name}: {variable.refusal}")
        if variable.kind == Kind.NUMBER:  # in float64, so that uint8 - 1 is -1
            return Term(
                Kind.NUMBER,
                token.place,
                frozenset({name}),
                lambda columns: columns[name].astype(np.float64, copy=False),
            )
        return Term(
            variable.kind, token.place, frozenset({name}), lambda columns: columns[name], meanings=variable.meanings
        )


def _quoted(meanings: Mapping[str, int]) -> str:
    return ", ".join(f'"{meaning}"' for meaning in meanings)


def _is_among(values: Any, wanted: list[Any]) -> Any:
    """Whether each value is one of some."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "TO":
        words = set(wanted)
        return np.fromiter((value in words for value in values.tolist()), dtype=bool, count=len(values))
    return np.isin(values, wanted)
