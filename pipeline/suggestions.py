"""Did-you-mean hints for names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Message about a name that does not exist, with the most similar name or, if none is similar, all known names.

    Args:
        kind: Kind of thing that has the name: "column", "key".
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
