"""Filters: their meaning, the errors that they report, and that nothing in them is ever run."""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening.selection import filter_expression
from equiscreen.screening.selection.filter_expression import MAX_DEPTH, parse_filter
from equiscreen.screening.selection.filter_terms import Kind, Variable
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
        ("magnetic == True or False", [False, True, False, True]),
        ("n_atoms in [5, 3,]", [True, False, True, False]),
        ("n_atoms in ([5, (3)])", [True, False, True, False]),
        ("max(n_atoms, 10,) == 10", [True, False, True, False]),
        ("  \n\tn_atoms < 4\nor\u00a0magnetic\r\n", [False, True, True, True]),
        ("formula=='NaCl'and n_atoms<9", [True, False, False, False]),
        ("n_atoms == 005 or n_atoms==.3e1", [True, False, True, False]),
        ("n_atoms < 1" + "0" * 5000, [True] * 4),
        ("1 < n_atoms < 21 != n_atoms", [True, True, True, False]),
        ("not magnetic == true and n_atoms > 4", [True, False, False, False]),
        ("2 ** -1 == 0.5 and -2 ** 2 == -4 and 2 - 1 - 1 == 0 and 8 / 2 / 2 == 2", [True] * 4),
        ("+".join(["n_atoms"] * 1200) + " == 6000", [True, False, False, False]),
    ],
)
def test_meaning(text: str, expected: list[bool] | None) -> None:
    assert holds(text) == ([True] * 4 if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("energy_above_hul < 1", r"character 1 .*did you mean 'energy_above_hull'"),
        ("n_atoms < 3 and formla == 'H2'", r"character 17 .*did you mean 'formula'"),
        ('status == "okay"', r"character 11 .*unknown word 'okay'; choose one of \"ok\", \"exploded\""),
        ("status == 0", r"character 1 .*compare a flag with a word"),
        ("status < 'ok'", "has no order"),
        ("formula < 3", "character 9 .*text cannot be compared with a number"),
        ("formula < 'H2'", "has no order"),
        ("n_atoms == '3'", "cannot be compared"),
        ("n_atoms", "expected a condition, not a number"),
        ("not n_atoms", "character 5 .*expected a condition"),
        ("stress > 0", "3 x 3 numbers"),
        ("n_atoms = 3", "character 9 .*use =="),
        ("n_atoms < 3 & magnetic", "character 13 .*use `and`"),
        ("n_atoms < 3 | magnetic", "character 13 .*use `or`"),
        ("!magnetic", "character 1 .*use `not`"),
        ("n_atoms < (3", r"character 11 .*'\(' was never closed"),
        ("n_atoms < ", "character 11 .*something is missing"),
        ("", "empty"),
        ("n_atoms < 3 n_atoms", "character 13 .*'n_atoms' was not expected"),
        ("n_atoms ** 1000 > 3", "character 12 .*exponent"),
        ("2 ** n_atoms > 3", "exponent"),
        ("9 ** 9 ** 9 ** 9 > n_atoms", "exponent"),
        ("n_atoms in [n_atoms]", "a list may hold only"),
        ("n_atoms in ['a']", "in a list"),
        ("abs(n_atoms, 3) > 1", "the number of values must be 1"),
        ("n_atoms < 0x10", "character 11 .*'0x10' is not a number"),
        ("formula == 'H2", "character 12 .*closing quote is missing"),
        ("(" * 500 + "magnetic" + ")" * 500, f"more than {MAX_DEPTH} levels deep"),
        ("not " * 500 + "magnetic", f"more than {MAX_DEPTH} levels deep"),
        ("-" * 500 + "1 < 2", f"more than {MAX_DEPTH} levels deep"),
        ("**".join(["2"] * 3000) + " > n_atoms", f"more than {MAX_DEPTH} levels deep|exponent"),
        ("n_atoms < 1 or " * 2000 + "magnetic", "more than 10,000"),
        ("-" * 9_000 + "1 < 2", f"more than {MAX_DEPTH} levels deep"),
        ("(" * MAX_DEPTH + "not magnetic" + ")" * MAX_DEPTH, f"character 55 .*more than {MAX_DEPTH} levels deep"),
        ("n_atoms < 3)", r"character 12 .*unmatched '\)'"),
        ("n_atoms in [3)", r"character 14 .*does not match"),
        ("min(n_atoms 3) < 4", "character 5 .*an operator or a comma is missing"),
        ("formula == 'a' 'b'", "character 12 .*missing between two words in quotes"),
        ("formula == r'H2'", "character 12 .*unknown name 'r'|character 13 .*was not expected"),
        ("n_atoms in []", "character 12 .*needs a list"),
        ("n_atoms in (1, 2)", "character 12 .*needs a list"),
        ("n_atoms in [+1]", "character 13 .*a list may hold only"),
        ("formula in [-'H2']", "character 13 .*a list may hold only"),
        ("1 < n_atoms in [3]", "character 1 .*cannot be part of a chain"),
        ("magnetic in [true]", "character 1 .*condition cannot be in a list"),
        ("(1, 2) == 3", "character 1 .*'\\(1, 2\\)' is not part of the filter language"),
        ("n_atoms // 2 == 1", "character 1 .*'n_atoms // 2' is not part of the filter language"),
        ("n_atoms % 2 == 1", "character 9 .*'%' is not part of the filter language"),
        ("n_atoms << 2 == 1", "'n_atoms << 2' is not part of the filter language"),
        ("n_atoms <> 2", "character 9 .*was not expected"),
        ("n_atoms is 2", "character 9 .*'is' was not expected"),
        ("n_atoms == 1_0", "character 12 .*'1_0' is not a number"),
        ("n_atoms == 1j", "character 12 .*'1j' is not a number"),
        ("n_atoms < 3and magnetic", "character 11 .*'3and' is not a number"),
        ("n_atoms == None", "character 12 .*unknown name 'None'"),
        ("min(*n_atoms) < 3", "is not part of the filter language"),
        ("min(**n_atoms) < 3", "takes no"),
        ("min(n_atoms, key=abs) < 3", "character 17 .*single ="),
        ("min(n_atoms) < 3", "the number of values must be 2 to 16"),
        ("abs(magnetic) < 3", "character 5 .*expected a number, not a true/false value"),
        ("median(n_atoms) < 3", "character 1 .*unknown function 'median'; choose one of abs"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_filter(text, VARIABLES)
    assert "\n" not in str(caught.value)


def test_a_sum_of_thousands_of_terms_is_computed_or_refused() -> None:
    """Python's own parser has a limit here, up to version 3.12."""
    try:
        assert holds("+".join("1" * 4_900) + " > n_atoms") == [True] * 4
    except ConfigError as error:
        check_too_deep(error)


def check_too_deep(error: ConfigError) -> None:
    assert f"more than {MAX_DEPTH} levels deep" in str(error)


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
        "lambda: magnetic",
        "magnetic if true else false",
        "(yield magnetic)",
        "await magnetic",
        "n_atoms.__class__.__mro__ == 1",
        "min.__globals__ == 1",
        "(abs)(n_atoms).real < 3",
        "abs(n_atoms)(3) < 3",
        "'%s' % formula == 'H2'",
        "{n_atoms for n_atoms in [1]}",
        "n_atoms in {1, 2}",
        "n_atoms in [*[1]]",
        "b'H2' == formula",
        "'''H2''' == formula",
        "formula == '''H2'''",
        "n_atoms == ...",
        "n_atoms[0:1] == 3",
        "~magnetic",
        "n_atoms @ 3 > 1",
        "*magnetic",
        "magnetic,",
        "()",
        "n_atoms == 3\x00",
        "n_atoms == \ud800",
        "not",
        "not n_atoms < 3 not in [1]",
    ],
)
def test_code_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="at character"):
        parse_filter(text, VARIABLES)


def test_text_that_is_not_utf8_is_refused() -> None:
    """The shell passes any bytes on; Python keeps those that are not UTF-8 as surrogates, which NumPy does not take."""
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        holds("formula == '\udcff'")


def test_text_is_taken_as_it_stands() -> None:
    """There are no escapes and no comments inside quotes, and any character but the quote and a line break."""
    words = ["a\\b", "\\", "#1", "it's", "a\x00b", "\u00e4\u00a0", "{n_atoms}", "\\N{x}", "\\x", "", "__import__"]
    columns = {"formula": np.array(words, dtype=np.dtypes.StringDType())}
    for word in words:
        quote = '"' if "'" in word else "'"
        expected = [word == other for other in words]
        assert holds(f"formula == {quote}{word}{quote}", columns) == expected
        assert holds(f"formula in[{quote}{word}{quote}]", columns) == expected
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        holds("formula == '\ud800'", {"formula": np.array(["a"], dtype=object)})
    with pytest.raises(ConfigError, match=r"character 12 .*closing quote"):
        parse_filter("formula == 'H\n2'", VARIABLES)


@pytest.mark.parametrize("name", ["class", "is", "lambda", "None", "True", "print", "_", "a\u00b2", "\ufb01", "\u00e4"])
def test_any_word_can_be_a_column(name: str) -> None:
    variables = {name: Variable(Kind.NUMBER)}
    found = parse_filter(f"{name} < 2 and not abs({name})==.5", variables)
    assert found.names == {name}
    assert found.holds({name: np.array([0.0, -0.5, 3.0])}, 3).tolist() == [True, False, False]


def test_true_and_false_are_not_columns() -> None:
    variables = {"true": Variable(Kind.TRUTH), "false": Variable(Kind.TRUTH)}
    assert parse_filter("true and not false", variables).names == frozenset()


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
@pytest.mark.parametrize(
    "level", ["(", "not ", "(magnetic or n_atoms < 0 and true == (", "magnetic and not (", "0 < -("]
)
def test_the_limit_of_the_depth(level: str, depth: int) -> None:
    """Brackets, `not` and signs count together; everything else is free."""
    number = "<" in level and "or" not in level
    each = level.count("(") + level.count("not ") + level.count("-")
    levels = depth // each
    inner = level.removeprefix("0 < ")
    text = ("0 < " if number else "") + inner * levels + "+" * (number and depth - levels * each)
    text += "not " * ((not number) * (depth - levels * each))
    text += ("n_atoms" if number else "magnetic") + ")" * (levels * level.count("("))
    if depth <= MAX_DEPTH:
        assert len(holds(text)) == 4
    else:
        with pytest.raises(ConfigError, match=f"more than {MAX_DEPTH} levels deep"):
            parse_filter(text, VARIABLES)


@given(st.lists(st.sampled_from([*VARIABLES, "'secret'", "4711", " ", "and", "<", "(", ")"]), max_size=9).map(" ".join))
def test_python_sees_neither_names_nor_values(text: str) -> None:
    """What is given to `ast.parse` has the operators alone: nothing in it could do harm if it were run."""
    seen: list[str] = []

    def record(source: str, *, mode: str) -> ast.Expression:
        seen.append(source)
        return ast.parse(source, mode=mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_expression.ast, "parse", record)
        with contextlib.suppress(ConfigError):
            parse_filter(text, VARIABLES)
    assert all(set(source.replace("and", "")) <= set("_.0' <()") for source in seen)


def test_python_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert holds(r"formula == '\d' or 'a' == 'a'") == [True] * 4


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
    "true",
    "True",
    "#",
    "\\",
    "\n",
    "f''",
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
    """The same expression in NumPy, which Python evaluates here because the test itself has written it."""
    names: dict[str, Any] = {name: COLUMNS[name].astype(np.float64) for name in ("n_atoms", "energy_above_hull")}
    names |= {name: np.float64(value) for name, value in CONSTANTS.items()}
    with np.errstate(all="ignore"):
        expected = eval(expression, {"abs": np.abs, **names})  # noqa: S307 - written above
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
