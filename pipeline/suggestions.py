"""Messages about mistakes in settings, with did-you-mean hints for names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return a message about an unknown name that suggests the most similar known name or, if none is similar, all.

    Args:
        kind: Kind of thing that has the name, such as "column" or "key".
        name: The unknown name.
        known: The names that exist.

    Returns:
        ``unknown column 'formla'; did you mean 'formula'?`` or ``unknown column 'x'; choose formula or energy``.
    """
    names = list(map(str, known))  # the repr of a StrEnum member is different
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {near[0]!r}?"
    choices = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"unknown {kind} {name!r}" + (f"; choose {choices}" if choices else "")


def problem_text(problem: Mapping[str, Any], kind: str, known: Iterable[str], expected: Mapping[str, str]) -> str:
    """Return a message about a mistake that pydantic found: ``NAME: what is wrong``.

    Args:
        problem: One of the errors of a `ValidationError`.
        kind: Kind of thing that has a name, such as "setting" or "key".
        known: The names that exist.
        expected: Replacements for messages of pydantic, which name Python types; the keys are pydantic's error types.
    """
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return unknown_name(kind, name, known)
    text = str(expected.get(problem["type"], problem["msg"].removeprefix("Value error, ")))
    if name and problem["type"] != "value_error":  # the sentences of pydantic begin with a capital letter
        text = text[:1].lower() + text[1:]
    return f"{name}: {text}" if name else text
