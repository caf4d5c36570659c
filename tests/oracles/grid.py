"""Pairwise grids: a few combinations of settings in which any two values of different settings occur together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def pairwise_grid(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Combinations of the values that cover all pairs, found greedily; the first has the first value of each setting.

    Args:
        choices: Values of each setting.
    """
    names = list(choices)
    sizes = [range(len(choices[name])) for name in names]
    wanted = {(a, b, x, y) for a, b in itertools.combinations(range(len(names)), 2) for x in sizes[a] for y in sizes[b]}
    rows: list[list[int]] = []
    while wanted:
        row = [0] * len(names) if not rows else _row(sizes, wanted)
        wanted -= {(a, b, row[a], row[b]) for a, b in itertools.combinations(range(len(names)), 2)}
        rows.append(row)
    return [{name: choices[name][place] for name, place in zip(names, row, strict=True)} for row in rows]


def _row(sizes: Sequence[range], wanted: set[tuple[int, int, int, int]]) -> list[int]:
    """A combination that holds the first missing pair, completed by the values that cover most missing pairs."""
    a, b, x, y = min(wanted)
    chosen = {a: x, b: y}
    for place, values in enumerate(sizes):
        if place in chosen:
            continue

        def gain(value: int, place: int = place) -> int:
            pairs = ((min(p, place), max(p, place), v, p < place) for p, v in chosen.items())
            return sum((p, q, *((v, value) if before else (value, v))) in wanted for p, q, v, before in pairs)

        chosen[place] = max(values, key=gain)
    return [chosen[place] for place in range(len(sizes))]
