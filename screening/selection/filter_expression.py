"""Filter expressions such as ``energy_above_hull < 0.05 and n_atoms <= 20``.

A filter looks like a Python expression but is never run as one. `ast.parse` only finds its structure: it sees operators
and brackets, with every name, number and text replaced by a placeholder of the same length. A visitor then accepts a
whitelist of nodes and looks the placeholders up in the original text. The kind of each name is known in advance, so
that the position of a typo, or of a comparison of text with a number, can be reported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.suggestions import unknown_name
from .filter_terms import FUNCTIONS, Filter, Kind, Term, Variable, applied, constant, is_among, reduced

MAX_LENGTH = 10_000
MAX_DEPTH = 50
MAX_POWER = 16

_Operation = Callable[[Any, Any], Any]
_COMPARISONS: dict[type[ast.cmpop], tuple[str, _Operation]] = {
    ast.Lt: ("<", np.less),
    ast.LtE: ("<=", np.less_equal),
    ast.Gt: (">", np.greater),
    ast.GtE: (">=", np.greater_equal),
    ast.Eq: ("==", np.equal),
    ast.NotEq: ("!=", np.not_equal),
}
_ARITHMETIC: dict[type[ast.operator], _Operation] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_UNARY: dict[type[ast.unaryop], tuple[Kind, Callable[[Any], Any]]] = {
    ast.Not: (Kind.TRUTH, np.logical_not),
    ast.USub: (Kind.NUMBER, np.negative),
    ast.UAdd: (Kind.NUMBER, np.positive),
}
_KEYWORDS = {"and", "or", "not", "in"}
_TOKEN = re.compile(
    r"(?P<text>\"[^\"\n]*\"|'[^'\n]*')"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<space>\s+)"
    r"|(?P<sign>\*\*|[<>=!]=|[-+*/<>(),\[\]])"
    r"|(?P<other>\d[\w.]*|.)",
    re.DOTALL,
)
_HINTS = {
    "=": "a single = is not a comparison; use ==",
    "&": "use `and` instead of &",
    "|": "use `or` instead of |",
    "!": "use `not`, or != to compare",
    "~": "use `not` instead of ~",
    ".": "attributes are not part of the filter language",
    '"': "the closing quote is missing",
    "'": "the closing quote is missing",
}


def parse_filter(text: str, variables: Mapping[str, Variable]) -> Filter:
    """Parse a filter expression.

    Args:
        text: For example ``energy_above_hull < 0.05 and status == "ok"``.
        variables: Variables that the filter may refer to, by name.

    Raises:
        ConfigError: The text is not a valid filter; the message gives the position and the reason.
    """
    return _Parser(text, variables).parse()


class _Parser(ast.NodeVisitor):
    """Turns the nodes of a filter into terms, and rejects every node for which this class has no method."""

    def __init__(self, text: str, variables: Mapping[str, Variable]) -> None:
        if len(text) > MAX_LENGTH:
            raise ConfigError(
                f"--where has {len(text):,} characters, more than {MAX_LENGTH:,}; apply one part of it first, and the "
                "rest to the resulting selection"
            )
        self.text, self.variables = text, variables
        self.depth = 0
        self.indent = len(text) - len(text.lstrip())
        self.structure = "".join(map(self._placeholder, _TOKEN.finditer(text)))
        # Number of open round brackets at each character; placeholders contain none.
        self.brackets = list(accumulate((sign == "(") - (sign == ")") for sign in self.structure))

    def _placeholder(self, token: re.Match[str]) -> str:
        """Return what `ast.parse` sees in place of a token: plain ASCII of the same length.

        In this way, strings need no escapes, Python's keywords can be names of columns, and numbers are always decimal.
        """
        text, sort = token[0], token.lastgroup
        if sort == "other":
            what = "a number" if text[0].isdigit() else "part of the filter language"
            raise self._error(token.start(), _HINTS.get(text, f"{text!r} is not {what}"))
        if sort == "text":
            if any("\ud800" <= char <= "\udfff" for char in text):  # bytes of a command line that are not UTF-8
                raise self._error(token.start(), "the text is not valid UTF-8")
            return text[0] + "_" * (len(text) - 2) + text[0]
        if sort == "number":
            return ".".ljust(len(text), "0") if len(text) > 1 else "0"
        if sort == "name" and text not in _KEYWORDS:
            return "_" * len(text)
        return " " * len(text) if sort == "space" else text

    def parse(self) -> Filter:
        """Parse the text and return the filter.

        Raises:
            ConfigError: The filter is empty, or something in it is not allowed.
        """
        if not self.text.strip():
            raise self._error(0, "the filter is empty")
        deep = next((place for place, depth in enumerate(self.brackets) if depth > MAX_DEPTH), None)
        if deep is not None:
            raise self._too_deep(deep)
        try:
            root = ast.parse(self.structure.strip(), mode="eval").body
            nodes = root.values if isinstance(root, ast.BoolOp) and isinstance(root.op, ast.And) else [root]
            return Filter(self.text, tuple(self._operand(node, Kind.TRUTH) for node in nodes))
        except SyntaxError as error:
            raise self._syntax_error(error) from None
        except (RecursionError, MemoryError):  # `ast.parse` also fails on sums of thousands of terms
            raise self._too_deep(self.indent) from None

    def _error(self, place: int, message: str) -> ConfigError:
        return ConfigError(f"--where, at character {place + 1} of {' '.join(self.text.split())[:200]!r}: {message}")

    def _too_deep(self, place: int) -> ConfigError:
        return self._error(
            place,
            f"the filter is too long, or nested more than {MAX_DEPTH} levels deep; apply one part of it first, and the "
            "rest to the resulting selection",
        )

    def _syntax_error(self, error: SyntaxError) -> ConfigError:
        if not error.offset:  # Python reports the end of the text as 0
            return self._error(len(self.text), "something is missing at the end")
        place = self.indent + error.offset - 1
        token = _TOKEN.match(self.text, place)
        if not error.msg.startswith("invalid syntax") or token is None:
            return self._error(place, error.msg)
        if "comma" in error.msg:  # Python then points to the first of two neighbouring expressions
            return self._error(place, "an operator or a comma is missing")
        return self._error(place, f"{token[0]!r} was not expected here")

    def _place(self, node: ast.expr) -> int:
        return self.indent + node.col_offset

    def _source(self, node: ast.expr) -> str:
        return self.text[self._place(node) : self.indent + (node.end_col_offset or 0)]

    def visit(self, node: Any) -> Term:
        """Return the term of a node."""
        place = self._place(node)
        if self.depth + self.brackets[place] > MAX_DEPTH:
            raise self._too_deep(place)
        term: Term = super().visit(node)
        return term

    def generic_visit(self, node: Any) -> Term:
        """Reject a node for which this class has no method."""
        raise self._error(self._place(node), f"{self._source(node)[:40]!r} is not part of the filter language")

    def _operand(self, node: ast.expr, kind: Kind, *, deeper: bool = False) -> Term:
        """Return the term of a node that must be a condition or a number."""
        self.depth += deeper
        term = self.visit(node)
        self.depth -= deeper
        if term.kind != kind:
            wanted, hint = ("a condition", "; compare it with something") if kind == Kind.TRUTH else (kind, "")
            raise self._error(term.place, f"expected {wanted}, not {term.kind}{hint}")
        return term

    def visit_BoolOp(self, node: ast.BoolOp) -> Term:
        how = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return reduced(Kind.TRUTH, [self._operand(value, Kind.TRUTH) for value in node.values], how)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Term:
        if type(node.op) not in _UNARY:
            return self.generic_visit(node)
        kind, function = _UNARY[type(node.op)]
        return applied(kind, self._place(node), self._operand(node.operand, kind, deeper=True), function)

    def visit_BinOp(self, node: ast.BinOp) -> Term:
        """Return the term of a calculation; left operands are unrolled, so that a long sum is not deeply nested."""
        steps: list[ast.BinOp] = []
        first: ast.expr = node
        while isinstance(first, ast.BinOp):
            steps.append(first)
            first = first.left
        term = self._operand(first, Kind.NUMBER)
        operations = []
        names = term.names
        for step in reversed(steps):
            if type(step.op) not in _ARITHMETIC:
                return self.generic_visit(step)
            power = isinstance(step.op, ast.Pow)
            right = self._operand(step.right, Kind.NUMBER, deeper=power)
            if power and not _is_small(right):
                raise self._error(right.place, f"an exponent must be a number between -{MAX_POWER} and {MAX_POWER}")
            operations.append((_ARITHMETIC[type(step.op)], right))
            names |= right.names

        def values(columns: Mapping[str, NDArray[Any]]) -> Any:
            found = term.values(columns)
            for operation, right in operations:
                found = operation(found, right.values(columns))
            return found

        return Term(Kind.NUMBER, term.place, names, values)

    def visit_Compare(self, node: ast.Compare) -> Term:
        if isinstance(node.ops[0], ast.In | ast.NotIn) and len(node.ops) == 1:
            return self._membership(node.left, node.comparators[0], negated=isinstance(node.ops[0], ast.NotIn))
        if any(type(operator) not in _COMPARISONS for operator in node.ops):
            raise self._error(self._place(node), "`in` cannot be part of a chain of comparisons; use `and`")
        nodes = [node.left, *node.comparators]
        terms = [self.visit(one) for one in nodes]
        found = []
        for before, operator, left, right in zip(nodes, node.ops, terms, terms[1:], strict=False):
            sign, operation = _COMPARISONS[type(operator)]
            place = self.structure.index(sign, self.indent + (before.end_col_offset or 0))
            found.append(self._comparison(left, right, sign, place, operation))
        return reduced(Kind.TRUTH, found, np.logical_and)

    def _comparison(self, left: Term, right: Term, sign: str, place: int, operation: _Operation) -> Term:
        left, right = self._as_flags(left, right)
        if left.kind != right.kind:
            raise self._error(place, f"{left.kind} cannot be compared with {right.kind}")
        if left.kind != Kind.NUMBER and sign not in ("==", "!="):
            raise self._error(place, f"{left.kind} has no order; compare with == or !=")
        return reduced(Kind.TRUTH, [left, right], operation)

    def _as_flags(self, left: Term, right: Term) -> tuple[Term, Term]:
        """Replace a word that is compared with a flag by the value that it stands for."""
        for flag, word in ((left, right), (right, left)):
            if flag.kind == Kind.FLAG and isinstance(word.literal, str):
                term = constant(Kind.FLAG, word.place, self._meaning(flag, word))
                return (flag, term) if flag is left else (term, flag)
        if Kind.FLAG in (left.kind, right.kind):
            flag = left if left.kind == Kind.FLAG else right
            raise self._error(flag.place, f"compare a flag with a word in quotes: {flag.words}")
        return left, right

    def _meaning(self, flag: Term, word: Term) -> int:
        literal = str(word.literal)
        if literal not in flag.meanings:
            raise self._error(word.place, f"unknown word {literal!r}; choose one of {flag.words}")
        return flag.meanings[literal]

    def _membership(self, left: ast.expr, right: ast.expr, *, negated: bool) -> Term:
        if not isinstance(right, ast.List) or not right.elts:
            raise self._error(self._place(right), "`in` needs a list in square brackets, such as [1, 2]")
        term = self.visit(left)
        if term.kind == Kind.TRUTH:
            raise self._error(term.place, "a condition cannot be in a list")
        items = [self._item(item) for item in right.elts]
        if term.kind == Kind.FLAG:
            wanted: list[Any] = [self._meaning(term, item) for item in items]
        else:
            for item in items:
                if item.kind != term.kind:
                    raise self._error(item.place, f"{item.kind} cannot be in a list that is compared with {term.kind}")
            wanted = [item.literal for item in items]
        return applied(Kind.TRUTH, term.place, term, lambda values: np.logical_xor(is_among(values, wanted), negated))

    def _item(self, node: ast.expr) -> Term:
        """Return the term of an item of a list: a number, a negative number or text."""
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        literal = node.operand if isinstance(node, ast.UnaryOp) and negative else node
        term = self.visit(literal) if isinstance(literal, ast.Constant) else None
        if term is None or (negative and not isinstance(term.literal, float)):
            raise self._error(self._place(node), "a list may hold only numbers or words in quotes")
        return constant(term.kind, self._place(node), -term.literal) if negative else term  # type: ignore[operator]

    def visit_Call(self, node: ast.Call) -> Term:
        name, place = self._source(node.func), self._place(node)
        if name not in FUNCTIONS:
            raise self._error(place, f"unknown function {name[:40]!r}; choose one of {', '.join(FUNCTIONS)}")
        if node.keywords:
            raise self._error(place, f"{name} takes no ** arguments")
        kind, function, least, most = FUNCTIONS[name]
        given = [self._operand(argument, Kind.NUMBER) for argument in node.args]
        if not least <= len(given) <= most:
            raise self._error(
                place, f"{name}: the number of values must be {least if least == most else f'{least} to {most}'}"
            )
        return applied(kind, place, given[0], function) if most == 1 else reduced(kind, given, function)

    def visit_Constant(self, node: ast.Constant) -> Term:
        source, place = self._source(node), self._place(node)
        token = _TOKEN.fullmatch(source)
        if token is None:  # Python joins adjacent strings
            raise self._error(place, "an operator or a comma is missing between two words in quotes")
        if token.lastgroup == "number":
            return constant(Kind.NUMBER, place, float(source))
        return constant(Kind.TEXT, place, source[1:-1])

    def visit_Name(self, node: ast.Name) -> Term:
        name, place = self._source(node), self._place(node)
        variable = self.variables.get(name)
        if name in ("true", "false") or (variable is None and name in ("True", "False")):
            return constant(Kind.TRUTH, place, name in ("true", "True"))
        if variable is None:
            raise self._error(place, unknown_name("name", name, [*self.variables, *_KEYWORDS, "true", "false"]))
        if variable.refusal:
            raise self._error(place, f"{name}: {variable.refusal}")
        if variable.kind == Kind.NUMBER:  # in float64, so that uint8 - 1 is -1
            return Term(
                Kind.NUMBER, place, frozenset({name}), lambda columns: columns[name].astype(np.float64, copy=False)
            )
        return Term(variable.kind, place, frozenset({name}), lambda columns: columns[name], meanings=variable.meanings)


def _is_small(exponent: Term) -> bool:
    with np.errstate(all="ignore"):
        return not exponent.names and abs(float(exponent.values({}))) <= MAX_POWER
