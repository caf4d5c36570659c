"""Charge balance of a formula, by SMACT's rules."""

from __future__ import annotations

import warnings
from functools import lru_cache
from math import gcd
from typing import Any

from ase.data import chemical_symbols

from ...pipeline.errors import ConfigError
from .composition import parsed

# `metals`: all elements are metals, which need no ions; SMACT calls them valid. `unknown`: an element without data, or
# too many elements to try all oxidation states.
BALANCE = ("no", "yes", "metals", "unknown")
NO, YES, METALS, UNKNOWN = range(len(BALANCE))
MAX_ELEMENTS = 7


def balance(formula: str, *, electronegativity: bool) -> int:
    """Whether known oxidation states can make a formula neutral: a place in `BALANCE`.

    By SMACT's rules (Davies et al., Chem 1, 617 (2016); J. Open Source Softw. 4, 1361 (2019)) with its oxidation states
    of the ICSD. Each element has one oxidation state, so that mixed valence, as in Fe3O4, is not seen.

    Args:
        formula: Of whole numbers.
        electronegativity: Want the anions of such a solution to be more electronegative than its cations, too.

    Raises:
        ConfigError: The package smact is not installed.
    """
    return _balance(tuple(sorted(parsed(formula).items())), electronegativity)


@lru_cache(maxsize=1 << 16)
def _balance(amounts: tuple[tuple[int, int], ...], electronegativity: bool) -> int:
    screening = load_smact()
    import smact  # noqa: PLC0415 - takes 0.4 s

    symbols = [chemical_symbols[number] for number, _ in amounts]
    if len(amounts) > MAX_ELEMENTS:
        return UNKNOWN
    if all(symbol in smact.metals for symbol in symbols):
        return METALS
    divisor = gcd(*(count for _, count in amounts))
    formula = "".join(f"{chemical_symbols[number]}{count // divisor}" for number, count in amounts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without a Pauling electronegativity
        try:
            valid = screening.smact_validity(formula, use_pauling_test=electronegativity, include_alloys=False)
        except (KeyError, NameError, TypeError, ValueError):  # elements that SMACT has no data of
            return UNKNOWN
    return YES if valid else NO


@lru_cache(maxsize=1)
def load_smact() -> Any:
    """SMACT's module of rules.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import smact.screening as screening  # noqa: PLC0415, PLR0402 - takes 0.4 s
    except ImportError as error:
        raise ConfigError(
            f"charge_neutral and electronegativity_ok need {error.name}: pip install 'equiscreen[select]'"
        ) from error
    return screening
