"""Damaged inputs: each ends with correct counts or a one-line error, never with a traceback or wrong numbers.

Mutants are numbered, and the number alone decides the damage: a failure names it, and `mutant` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .mutations import Mutator
from .targets import Target, make_targets

# Mutants of each kind in the default run, 100 in all.
FEW = {
    "formats": 30,
    "stores": 10,
    "graphs": 10,
    "scores": 10,
    "models": 8,
    "checkpoints": 8,
    "references": 8,
    "unfinished": 6,
    "yaml": 10,
}
MANY = 50  # times as many in `make slow`
CHUNKS = 10  # in as many tests of each kind, so that a hang is located by its timeout


@pytest.fixture(scope="module")
def targets(
    tmp_path_factory: pytest.TempPathFactory, exported: Callable[[str], Path], checkpoint: Path
) -> dict[str, Target]:
    return make_targets(tmp_path_factory.mktemp("sound"), exported("float64"), checkpoint)


def try_mutants(target: Target, numbers: range, folder: Path) -> None:
    faults = []
    for number in numbers:
        mutator = Mutator(np.random.default_rng(number))
        (folder / "number").write_text(str(number))  # tells the mutant at fault if the process dies or hangs
        try:
            target.attempt(folder / str(number), mutator)
        except AssertionError as fault:
            faults.append(f"mutant {number}: {fault}")
    assert not faults, f"{len(faults)} of {len(numbers)}:\n" + "\n".join(faults)


@pytest.mark.parametrize("name", FEW)
def test_damage_is_noticed_or_does_no_harm(targets: dict[str, Target], name: str, tmp_path: Path) -> None:
    try_mutants(targets[name], range(FEW[name]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("name", FEW)
def test_thousands_of_mutants(targets: dict[str, Target], name: str, chunk: int, tmp_path: Path) -> None:
    size = MANY * FEW[name] // CHUNKS
    try_mutants(targets[name], range(1_000 + chunk * size, 1_000 + (chunk + 1) * size), tmp_path)
