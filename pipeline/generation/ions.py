"""Ions: substitution probabilities, ionic radii, and the most likely ions of a formula."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

# pymatgen's guess tries all combinations of oxidation states of each element. This many combinations take a second; the
# combinations for 40 carbon atoms would take hours.
MAX_MIXTURES = 200_000


@dataclass(frozen=True, slots=True)
class IonTable:
    """The ions with known substitution probabilities, sorted by atomic number and charge.

    Attributes:
        name: Names in pymatgen's notation: "Ti4+".
        atomic_number: int64[n].
        charge: int64[n].
        radius: float64[n], ionic radius, angstrom.
        probability: float64[n, n], element [old, new] is p(new | old); rows sum to 1.
    """

    name: tuple[str, ...]
    atomic_number: NDArray[np.int64]
    charge: NDArray[np.int64]
    radius: NDArray[np.float64]
    probability: NDArray[np.float64]


@lru_cache(maxsize=1)
def ion_table() -> IonTable:
    """Load the 230 ions of Hautier et al. (Inorg. Chem. 50, 656 (2011)), with the matrix of conditional probabilities.

    p(new | old) = exp(lambda[old, new]) / sum_j exp(lambda[old, j]), with the weights lambda shipped with pymatgen,
    which sets lambda to -5 for pairs that were never observed.
    """
    from pymatgen.analysis.structure_prediction.substitution_probability import (  # noqa: PLC0415 - slow to import
        SubstitutionProbability,
    )

    model = SubstitutionProbability()
    ions = sorted(model.species, key=lambda ion: (ion.Z, ion.oxi_state))
    n = len(ions)
    weight = np.empty((n, n))
    for i in range(n):
        for j in range(i, n):
            weight[i, j] = weight[j, i] = math.exp(model.get_lambda(ions[i], ions[j]))
    return IonTable(
        name=tuple(map(str, ions)),
        atomic_number=np.array([ion.Z for ion in ions]),
        charge=np.array([int(ion.oxi_state) for ion in ions]),
        radius=np.array([_radius(ion) for ion in ions]),
        probability=weight / weight.sum(axis=1, keepdims=True),
    )


def _radius(ion: Any) -> float:
    """Return the ionic radius in angstrom (Shannon, Acta Cryst. A 32, 751 (1976), from pymatgen).

    An ion without a tabulated radius gets the radius of the element's ion with the nearest charge of the same sign. H+
    and Kr2+ have no such ion and get the covalent radius (Cordero et al., Dalton Trans. 2008, 2832, from ASE).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns about radii of one spin state
        if ion.ionic_radius is not None:
            return float(ion.ionic_radius)
    charge = int(ion.oxi_state)
    known = {int(c): float(r) for c, r in ion.element.ionic_radii.items() if c * charge > 0}
    if not known:
        return float(covalent_radii[ion.Z])
    return known[min(known, key=lambda c: (abs(c - charge), c))]


@lru_cache(maxsize=1 << 16)
def guess_ions(formula: tuple[tuple[int, int], ...]) -> tuple[int, ...] | None:
    """Guess the most likely ions of a formula, one per element.

    Args:
        formula: Atomic number and amount of each element in the reduced formula.

    Returns:
        Indices into the ion table; None if there is no guess, if guessing would take too long, or if an oxidation state
        is mixed or unknown.
    """
    from pymatgen.core import Composition, Element  # noqa: PLC0415 - slow to import

    table = ion_table()
    known = {
        (int(z), int(charge)): i for i, (z, charge) in enumerate(zip(table.atomic_number, table.charge, strict=True))
    }
    states: dict[str, list[int]] = {}
    for z, _ in formula:
        element = Element.from_Z(z)
        common = (
            element.icsd_oxidation_states or element.common_oxidation_states
        )  # the lists of oxidation states that pymatgen tries
        states[element.symbol] = [int(state) for state in common if (z, int(state)) in known]
    amounts = [amount for _, amount in formula]
    if not _worth_guessing(list(states.values()), amounts):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns that xenon has no electronegativity
        composition = Composition(dict(zip(states, amounts, strict=True)))
        guesses = composition.oxi_state_guesses(oxi_states_override=states, max_sites=-1)
    if not guesses:
        return None
    found = [
        known.get((z, guesses[0][chemical_symbols[z]])) for z, _ in formula
    ]  # an oxidation state of 2.5 is not tabulated
    return None if None in found else tuple(index for index in found if index is not None)


def _worth_guessing(states: list[list[int]], amounts: list[int]) -> bool:
    """Whether the charges of a formula can add up to zero, and pymatgen can test them in a reasonable time."""
    if len(states) < 2 or not all(states):
        return False
    low = sum(amount * min(s) for s, amount in zip(states, amounts, strict=True))
    high = sum(amount * max(s) for s, amount in zip(states, amounts, strict=True))
    mixtures = sum(math.comb(amount + len(s) - 1, amount) for s, amount in zip(states, amounts, strict=True))
    sums = math.prod(
        min(math.comb(a + len(s) - 1, a), a * (max(s) - min(s)) + 1) for s, a in zip(states, amounts, strict=True)
    )
    return low <= 0 <= high and mixtures <= MAX_MIXTURES and sums <= MAX_MIXTURES
