"""Did-you-mean hints for names that do not exist."""

from __future__ import annotations

from difflib import get_close_matches


def unknown_name(name: str, known: list[str]) -> str:
    """What to say of a name that there is not."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"there is no {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
