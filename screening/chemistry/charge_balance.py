"""Charge balance of a formula, by SMACT's rules."""

from __future__ import annotations

import warnings
from functools import lru_cache
from math import gcd
from typing import Any

from ase.data import chemical_symbols

from ...pipeline.errors import ConfigError
from .composition import parsed

# `metals`: all elements are metals, so no ions are needed; SMACT calls these formulas valid. `unknown`: SMACT has no
# data for an element, or there are too many elements to try all oxidation states.
BALANCE = ("no", "yes", "metals", "unknown")
NO, YES, METALS, UNKNOWN = range(len(BALANCE))
MAX_ELEMENTS = 7


def balance(formula: str, *, electronegativity: bool) -> int:
    """Check whether known oxidation states can make a formula neutral.

    The rules are SMACT's (Davies et al., Chem 1, 617 (2016); J. Open Source Softw. 4, 1361 (2019)), with its oxidation
    states from the ICSD. Each element gets a single oxidation state, so mixed valence, as in Fe3O4, is not recognised.

    Args:
        formula: Chemical formula with whole numbers of atoms.
        electronegativity: Also require that anions are more electronegative than cations.

    Returns:
        Index of the result in `BALANCE`.

    Raises:
        ConfigError: The text is not a chemical formula, or the package smact is not installed.
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
        warnings.simplefilter("ignore")  # warns about elements without a Pauling electronegativity
        try:
            valid = screening.smact_validity(formula, use_pauling_test=electronegativity, include_alloys=False)
        except (KeyError, NameError, TypeError, ValueError):  # elements for which SMACT has no data
            return UNKNOWN
    return YES if valid else NO


@lru_cache(maxsize=1)
def load_smact() -> Any:
    """Import and return SMACT's rules.

    Raises:
        ConfigError: The package smact is not installed.
    """
    try:
        import smact.screening as screening  # noqa: PLC0415, PLR0402 - takes 0.4 s
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"charge_neutral and electronegativity_ok need {error.name}, which is not installed: pip install "
            "'equiscreen[select]'"
        ) from error
    return screening
