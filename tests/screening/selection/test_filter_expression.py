"""Filters: what they mean, what they refuse, and that nothing in them is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening.selection.filter_expression import MAX_DEPTH, Kind, Variable, parse_filter
from hypothesis import given
from hypothesis import strategies as st

VARIABLES = {
    "energy_above_hull": Variable(Kind.NUMBER),
    "n_atoms": Variable(Kind.NUMBER),
    "formula": Variable(Kind.TEXT),
    "status": Variable(Kind.FLAG, {"ok": 3, "exploded": 0}),
    "magnetic": Variable(Kind.TRUTH),
    "stress": Variable(Kind.NUMBER, refusal="3 x 3 numbers for each structure; a filter takes one"),
}
COLUMNS: dict[str, Any] = {
    "energy_above_hull": np.array([0.0, 0.2, np.nan, -0.1]),
    "n_atoms": np.array([5, 20, 3, 255], dtype=np.uint8),
    "formula": np.array(["NaCl", "Fe2O3", "H2", "NaCl"], dtype=np.dtypes.StringDType()),
    "status": np.array([3, 0, 3, 3], dtype=np.uint8),
    "magnetic": np.array([False, True, False, True]),
}


def holds(text: str, columns: Mapping[str, Any] = COLUMNS) -> list[bool]:
    size = len(next(iter(columns.values())))
    return parse_filter(text, VARIABLES).holds(columns, size).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("energy_above_hull < 0.05 and n_atoms <= 20", [True, False, False, False]),
        ("0 <= energy_above_hull <= 0.2", [True, True, False, False]),
        ("not energy_above_hull < 0.05", [False, True, True, False]),
        ("isnan(energy_above_hull)", [False, False, True, False]),
        ("n_atoms - 21 < 0", [True, True, True, False]),  # no wrap-around of small integers
        ("n_atoms + 1 == 256", [False, False, False, True]),
        ('status == "ok" and not magnetic', [True, False, True, False]),
        ('status in ["ok", "exploded"]', [True] * 4),
        ("status != 'ok'", [False, True, False, False]),
        ('formula in ["H2", "Fe2O3"]', [False, True, True, False]),
        ('formula not in ["H2"]', [True, True, False, True]),
        ("n_atoms in [5, 3, -1]", [True, False, True, False]),
        ("magnetic or n_atoms < 4 and formula == 'H2'", [False, True, True, True]),
        ("(magnetic or n_atoms < 4) and formula == 'H2'", [False, False, True, False]),
        ("abs(energy_above_hull) * 10 >= 1", [False, True, False, True]),
        ("max(n_atoms, 10, 2) == 10", [True, False, True, False]),
        ("-n_atoms ** 2 == -25", [True, False, False, False]),
        ("n_atoms / 0 > 1e300", [True] * 4),
        ("2 ** 3 ** 2 == 512", None),
        ("true", [True] * 4),
    ],
)
def test_meaning(text: str, expected: list[bool] | None) -> None:
    assert holds(text) == ([True] * 4 if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("energy_above_hul < 1", r"character 1 .*did you mean 'energy_above_hull'"),
        ("n_atoms < 3 and formla == 'H2'", r"character 17 .*did you mean 'formula'"),
        ('status == "okay"', r"character 11 .*none of its words: \"ok\", \"exploded\""),
        ("status == 0", r"compared with a word"),
        ("status < 'ok'", "has no order"),
        ("formula < 3", "text cannot be compared with a number"),
        ("formula < 'H2'", "has no order"),
        ("n_atoms == '3'", "cannot be compared"),
        ("n_atoms", "a number where a condition is wanted"),
        ("not n_atoms", "condition is wanted"),
        ("stress > 0", "3 x 3 numbers"),
        ("n_atoms = 3", "compare with =="),
        ("n_atoms < 3 & magnetic", "say `and`"),
        ("n_atoms < 3 | magnetic", "say `or`"),
        ("!magnetic", "say `not`"),
        ("n_atoms < (3", r"'\)' is missing"),
        ("n_atoms < ", "something is missing"),
        ("", "empty"),
        ("n_atoms < 3 n_atoms", "was not expected"),
        ("n_atoms ** 1000 > 3", "exponent"),
        ("2 ** n_atoms > 3", "exponent"),
        ("9 ** 9 ** 9 ** 9 > n_atoms", "exponent"),
        ("n_atoms in [n_atoms]", "a list holds"),
        ("n_atoms in ['a']", "in a list"),
        ("abs(n_atoms, 3) > 1", "takes 1"),
        ("n_atoms < 0x10", "no part|was not expected"),
        ("formula == 'H2", "does not end"),
        ("(" * 500 + "magnetic" + ")" * 500, f"more than {MAX_DEPTH} deep"),
        ("not " * 500 + "magnetic", f"more than {MAX_DEPTH} deep"),
        ("-" * 500 + "1 < 2", f"more than {MAX_DEPTH} deep"),
        ("**".join(["2"] * 3000) + " > n_atoms", f"more than {MAX_DEPTH} deep|exponent"),
        ("n_atoms < 1 or " * 2000 + "magnetic", "more than 10,000"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_filter(text, VARIABLES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch /tmp/owned')",
        "().__class__.__bases__[0]",
        "n_atoms.__class__",
        "formula.upper() == 'H2'",
        "[x for x in (1,)]",
        "lambda: 1",
        "exec('1')",
        "eval('1') == 1",
        "open('x')",
        "n_atoms[0] == 1",
        "{'a': 1}",
        "f'{n_atoms}' == ''",
        "n_atoms if magnetic else 3",
        "(n := 3) > 1",
        "magnetic; import os",
        "@n_atoms > 1",
        "n_atoms < 3 # comment",
        "`id`",
        "$(id)",
        "n_atoms < 3\\\n",
    ],
)
def test_code_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="at character"):
        parse_filter(text, VARIABLES)


PIECES = ["n_atoms", "formula", "status", "magnetic", "stress", "and", "or", "not", "in", "[", "]", "(", ")", ","]
PIECES += [
    "<",
    "<=",
    "==",
    "!=",
    "+",
    "-",
    "*",
    "/",
    "**",
    "1",
    "2.5e3",
    "'ok'",
    '"',
    ".",
    "abs",
    "isnan",
    "min",
    "\x00",
]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join) | st.text(max_size=40))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        found = parse_filter(text, VARIABLES)
    except ConfigError:
        return
    assert found.holds(COLUMNS, 4).shape == (4,)


CONSTANTS = {"ONE": "1", "QUARTER": "0.25", "FIFTH": "2e-1"}
numbers = st.sampled_from(["n_atoms", "energy_above_hull", *CONSTANTS])
sums = st.recursive(
    numbers,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner)
        | st.builds("abs({})".format, inner)
        | st.builds("-{}".format, inner)
    ),
    max_leaves=6,
)
conditions = st.recursive(
    st.builds("({} {} {})".format, sums, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), sums),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("&|"), inner) | st.builds("(~{})".format, inner)
    ),
    max_leaves=6,
)


@given(conditions)
def test_as_numpy_means_it(expression: str) -> None:
    """The same expression in numpy's words, which Python evaluates here since this test has written it."""
    names: dict[str, Any] = {name: COLUMNS[name].astype(np.float64) for name in ("n_atoms", "energy_above_hull")}
    names |= {name: np.float64(value) for name, value in CONSTANTS.items()}
    with np.errstate(all="ignore"):
        expected = eval(expression, {"abs": np.abs, **names})  # noqa: S307 - made above
    ours = expression.replace("&", "and").replace("|", "or").replace("~", "not ")
    for name, value in CONSTANTS.items():
        ours = ours.replace(name, value)
    assert holds(ours) == np.broadcast_to(np.asarray(expected, dtype=bool), (4,)).tolist()


def test_conditions_are_divided_by_what_they_need() -> None:
    found = parse_filter("n_atoms < 3 and (magnetic or n_atoms > 7) and formula == 'H2'", VARIABLES)
    early, late = found.divided(frozenset({"magnetic"}))
    assert (early.names, late.names) == ({"n_atoms", "formula"}, {"magnetic", "n_atoms"})
    both = early.holds(COLUMNS, 4) & late.holds(COLUMNS, 4)
    assert np.array_equal(both, found.holds(COLUMNS, 4))
