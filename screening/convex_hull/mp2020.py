"""MP2020 corrections by composition, which make PBE and PBE+U energies of the Materials Project comparable.

Wang et al., Scientific Reports 11, 15496 (2021). pymatgen provides the numbers and the oxidation states that the rules
need; the tests compare with its `MaterialsProject2020Compatibility`. That class takes a millisecond per entry, mostly
to guess oxidation states again each time; this module looks them up in tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.graphs.graph_block import GraphBlock

# Types of oxygen bonds; hydroxides count as oxides.
OXIDE_TYPES = ("oxide", "peroxide", "superoxide", "ozonide")
# Sulfur that is oxidised by more electronegative elements is not corrected; polysulfides are corrected like sulfides.
SULFIDE_TYPES = ("sulfide", "sulfate")
# Elements that are corrected if their oxidation state makes them anions; S and O have rules of their own.
ANIONS = ("Br", "I", "Se", "Si", "Sb", "Te", "H", "N", "F", "Cl")
# Number of atoms in the largest reduced formula for which oxidation states are guessed.
_MAX_GUESSED_ATOMS = 20
# Bond lengths (angstrom) times the tolerance of the scheme: pymatgen's `oxide_type(structure, 1.05)`.
_TOLERANCE = 1.05
_O_H, _SUPEROXIDE, _PEROXIDE = 0.93 * _TOLERANCE, 1.35 * _TOLERANCE, 1.49 * _TOLERANCE
# Atoms at most this much further away than the nearest one are neighbours of sulfur (angstrom; pymatgen's
# `sulfide_type`).
_SHELL = 0.4
_H, _O, _S = 1, 8, 16
_COMMON_PEROXIDES = frozenset(["Li2O2", "Na2O2", "K2O2", "Cs2O2", "Rb2O2", "BeO2", "MgO2", "CaO2", "SrO2", "BaO2"])
_COMMON_SUPEROXIDES = frozenset(["LiO2", "NaO2", "KO2", "RbO2", "CsO2"])
_OZONIDES = frozenset(["LiO3", "NaO3", "KO3", "NaO5"])


class MP2020:
    """Corrections by composition and anion types; each is computed once.

    Elements of equal electronegativity are ordered by their symbols, as in pymatgen's sorted structures, so that the
    correction of a crystal does not depend on the order of its sites.

    Attributes:
        version: Version of pymatgen.
        potcars: Symbol of the Materials Project's POTCAR for each element.
        per_atom: Function that returns the correction of a composition, eV/atom; see `_per_atom` for its arguments.

    Raises:
        ConfigError: pymatgen is not installed.
    """

    def __init__(self) -> None:
        try:
            from pymatgen.core import Composition  # noqa: PLC0415 - an extra, and slow to import
            from pymatgen.entries.compatibility import (  # noqa: PLC0415 - an extra, and slow to import
                MaterialsProject2020Compatibility,
            )
            from pymatgen.io.vasp.sets import MPRelaxSet  # noqa: PLC0415 - an extra, and slow to import
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"MP2020 corrections need {error.name}, which is not installed: pip install 'equiscreen[hull]'"
            ) from error
        scheme = MaterialsProject2020Compatibility(check_potcar=False)
        self.version = version("pymatgen")
        self._anions: dict[str, float] = dict(scheme.comp_correction)
        self._mixing: dict[str, dict[str, float]] = {key: dict(value) for key, value in scheme.u_corrections.items()}
        self._hubbard: dict[str, dict[str, float]] = {key: dict(value) for key, value in scheme.u_settings.items()}
        self.potcars: dict[str, str] = {
            symbol: setting["symbol"] if isinstance(setting, dict) else setting
            for symbol, setting in MPRelaxSet.CONFIG["POTCAR"].items()
        }
        Composition("NaCl").oxi_state_guesses()  # this fills the table of occurrences
        self._occurrence: dict[tuple[str, float], float] = {
            (species.symbol, species.oxi_state): count for species, count in Composition.oxi_prob.items()
        }
        self.per_atom = lru_cache(maxsize=1 << 20)(self._per_atom)
        self._sums = lru_cache(maxsize=None)(self._sums_of_element)

    def hubbards(self, symbols: Sequence[str]) -> dict[str, float]:
        """Return the Hubbard U (eV) by element in MP2020 calculations of a compound; zeros are omitted."""
        settings = self._hubbard.get(by_electronegativity(tuple(symbols))[-1], {})
        return {symbol: float(settings[symbol]) for symbol in symbols if settings.get(symbol)}

    def from_formula(self, symbols: Sequence[str], counts: Sequence[int]) -> tuple[str, str]:
        """Return types of oxide and sulfide by formula alone, from pymatgen's lists of peroxides and similar oxides."""
        if "O" not in symbols:
            return OXIDE_TYPES[0], SULFIDE_TYPES[0]
        formula = _reduced_formula(symbols, counts)
        lists = (_COMMON_PEROXIDES, _COMMON_SUPEROXIDES, _OZONIDES)
        found = [kind for kind, known in zip(OXIDE_TYPES[1:], lists, strict=True) if formula in known]
        return (found or [OXIDE_TYPES[0]])[0], SULFIDE_TYPES[0]

    def given(
        self, symbols: Sequence[str], counts: Sequence[int], oxide: str, sulfide: str, states: Mapping[str, float]
    ) -> float:
        """Return the correction (eV/atom) for given average oxidation states by element; see also `_per_atom`."""
        return self._sum_of(tuple(symbols), tuple(counts), oxide, sulfide, states)

    def _per_atom(self, symbols: tuple[str, ...], counts: tuple[int, ...], oxide: str, sulfide: str) -> float:
        """Return the correction of a composition (eV/atom).

        Args:
            symbols: Symbols of the elements.
            counts: Number of atoms of each element, without a common divisor.
            oxide: One of `OXIDE_TYPES`; ignored without oxygen.
            sulfide: One of `SULFIDE_TYPES`; ignored without sulfur.
        """
        if len(symbols) == 1:
            return 0.0
        needed = any(symbol in ANIONS for symbol in symbols)
        return self._sum_of(symbols, counts, oxide, sulfide, self.oxidation_states(symbols, counts) if needed else {})

    def _sum_of(
        self,
        symbols: tuple[str, ...],
        counts: tuple[int, ...],
        oxide: str,
        sulfide: str,
        states: Mapping[str, float],
    ) -> float:
        """Return the correction for given oxidation states (eV/atom)."""
        if len(symbols) == 1:
            return 0.0
        last = by_electronegativity(symbols)[-1]
        mixing = self._mixing.get(last, {})
        total = 0.0
        for symbol, count in zip(symbols, counts, strict=True):
            if symbol == "S" and sulfide != "sulfate":
                total += self._anions["S"] * count
            elif symbol == "O":
                total += self._anions[oxide] * count
            elif symbol in ANIONS and symbol in self._anions:
                state = states.get(symbol, 0)
                if state <= -1 or (state >= 0 and symbol == last):
                    total += self._anions[symbol] * count
            total += mixing.get(symbol, 0.0) * count
        return total / sum(counts)

    def oxidation_states(self, symbols: tuple[str, ...], counts: tuple[int, ...]) -> dict[str, float]:
        """Return the most likely neutral combination of oxidation states, averaged for each element.

        It is the first that pymatgen's `Composition.oxi_state_guesses(max_sites=-20)` returns: the one with the largest
        sum of the ions' occurrences in the ICSD, and among equal sums the one that is tried first. The result is empty
        if there is none, or if the formula has more than 20 atoms.
        """
        if sorted(zip(symbols, counts, strict=True)) == [("H", 1), ("O", 1)]:
            counts = tuple(2 * count for count in counts)  # pymatgen reduces this formula to H2O2
        if sum(counts) > _MAX_GUESSED_ATOMS:
            return {}
        order = by_electronegativity(symbols)
        amount = dict(zip(symbols, counts, strict=True))
        tables = [self._sums(symbol, amount[symbol]) for symbol in order]
        if any(len(sums) == 0 for sums, _ in tables):
            return {}
        charge, score = tables[0]
        for sums, scores in tables[1:]:
            charge = (charge[:, None] + sums).ravel()
            score = (score[:, None] + scores).ravel()
        neutral = np.flatnonzero(charge == 0)
        if len(neutral) == 0:
            return {}
        best = int(neutral[np.argmax(score[neutral])])
        places = np.unravel_index(best, [len(sums) for sums, _ in tables])
        return {
            symbol: float(sums[place]) / amount[symbol]
            for symbol, (sums, _), place in zip(order, tables, places, strict=True)
        }

    def _sums_of_element(self, symbol: str, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the possible sums of the oxidation states of `count` atoms, each with its largest sum of occurrences.

        The sums are in the order in which pymatgen tries them: combinations with repetition, in lexicographic order.
        """
        from pymatgen.core import Element  # noqa: PLC0415 - an extra

        element = Element(symbol)
        states = list(element.icsd_oxidation_states or element.common_oxidation_states)
        # By number of atoms: each sum, with the first combination that gives it and the best score.
        tables: list[dict[int, tuple[tuple[int, ...], float]]] = [{0: ((), 0.0)}, *({} for _ in range(count))]
        for index in reversed(range(len(states))):
            occurrence = self._occurrence.get((symbol, states[index]), 0)
            joined: list[dict[int, tuple[tuple[int, ...], float]]] = [{} for _ in range(count + 1)]
            for atoms in range(count + 1):
                for copies in range(atoms, -1, -1):
                    for total, (rest, score) in tables[atoms - copies].items():
                        reached = total + copies * states[index]
                        found = ((index,) * copies + rest, score + copies * occurrence)
                        known = joined[atoms].get(reached)
                        joined[atoms][reached] = (
                            found if known is None else (min(known[0], found[0]), max(known[1], found[1]))
                        )
            tables = joined
        items = sorted((combination, total, score) for total, (combination, score) in tables[count].items())
        return (
            np.array([total for _, total, _ in items], dtype=np.int64),
            np.array([score for *_, score in items], dtype=np.float64),
        )


def anion_types(block: GraphBlock) -> tuple[list[str], list[str]]:
    """Return the types of oxide and of sulfide of each structure, from the distances in its graph.

    The rules are the same as in pymatgen's `oxide_type` and `sulfide_type`. pymatgen itself is called for sulfur that
    has both more and less electronegative neighbours, or neighbours that may lie beyond the edges of the graph.

    Args:
        block: Structures; those without oxygen or sulfur get the first of `OXIDE_TYPES` and `SULFIDE_TYPES`.
    """
    receiver, sender = block.atomic_number[block.receiver], block.atomic_number[block.sender]
    vectors = block.displacements()
    distance = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return _oxides(block, receiver, sender, distance), _sulfides(block, receiver, sender, distance)


def _oxides(
    block: GraphBlock, receiver: NDArray[np.uint8], sender: NDArray[np.uint8], distance: NDArray[np.float64]
) -> list[str]:
    """Return the oxide type of each structure, one of `OXIDE_TYPES`."""

    def seen(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.zeros(len(block), dtype=bool)
        found[block.atom_structure[block.receiver[edges]]] = True
        return found

    hydroxide = seen((receiver == _O) & (sender == _H) & (distance < _O_H))
    # A pair of atoms counts once, regardless of its images; an atom's own images are not its neighbours.
    pairs = (receiver == _O) & (sender == _O) & (distance < _PEROXIDE) & (block.receiver != block.sender)
    short = np.flatnonzero(pairs & (distance < _SUPEROXIDE))
    bonds = np.unique(np.stack([block.receiver[short], block.sender[short]], axis=1), axis=0)
    atoms, partners = np.unique(bonds[:, 0], return_counts=True)
    ozonide = np.zeros(len(block), dtype=bool)
    ozonide[block.atom_structure[atoms[partners > 1]]] = True
    superoxide = np.zeros(len(block), dtype=bool)
    superoxide[block.atom_structure[atoms]] = True
    codes = np.select([hydroxide, ozonide, superoxide, seen(pairs)], [0, 3, 2, 1], 0)
    return [OXIDE_TYPES[code] for code in codes.tolist()]


def _sulfides(
    block: GraphBlock, receiver: NDArray[np.uint8], sender: NDArray[np.uint8], distance: NDArray[np.float64]
) -> list[str]:
    """Return the sulfide type of each structure, one of `SULFIDE_TYPES`."""
    found = [SULFIDE_TYPES[0]] * len(block)
    stronger = _stronger_than_sulfur()
    edges = np.flatnonzero(receiver == _S)
    atoms = np.flatnonzero(block.atomic_number == _S)
    if len(atoms) == 0:
        return found
    nearest = np.full(len(block.atomic_number), np.inf)
    np.minimum.at(nearest, block.receiver[edges], distance[edges])
    shell = edges[distance[edges] < nearest[block.receiver[edges]] + _SHELL]
    n_atoms = len(block.atomic_number)
    total = np.bincount(block.receiver[shell], minlength=n_atoms)
    strong = np.bincount(block.receiver[shell], stronger[sender[shell]], minlength=n_atoms)
    reach = float(distance.max()) if len(distance) else 0.0
    for structure in np.unique(block.atom_structure[atoms]).tolist():
        mine = atoms[block.atom_structure[atoms] == structure]
        if (strong[mine] == 0).all() and (nearest[mine] + _SHELL <= reach).all():
            continue
        if ((strong[mine] == total[mine]) & (total[mine] > 0)).any():
            found[structure] = SULFIDE_TYPES[1]
        else:
            found[structure] = _pymatgen_sulfide_type(block, structure)
    return found


def _pymatgen_sulfide_type(block: GraphBlock, index: int) -> str:
    """Return the sulfide type of one structure, as found by pymatgen."""
    from pymatgen.analysis.structure_analyzer import sulfide_type  # noqa: PLC0415 - an extra
    from pymatgen.core import Lattice, Structure  # noqa: PLC0415 - an extra, and slow to import

    given = block.structure(index)
    symbols = [chemical_symbols[number] for number in given.atomic_number.tolist()]
    # Atoms without periodicity are put into a box in which their images are far apart.
    cell, coords = given.cell, given.frac_coord
    if not given.pbc.all():
        cell = np.eye(3) * (np.ptp(given.positions, axis=0).max() + 30.0)
        coords = given.positions @ np.linalg.inv(cell)
    kind = sulfide_type(Structure(Lattice(cell), symbols, coords))
    return SULFIDE_TYPES[1] if kind is None else SULFIDE_TYPES[0]


@lru_cache(maxsize=1)
def _stronger_than_sulfur() -> NDArray[np.float64]:
    """Return 1 if more electronegative than sulfur or without a value, else 0, by atomic number: float64[256]."""
    values = np.array([electronegativity(symbol) for symbol in chemical_symbols[1:]])
    out = np.zeros(256)
    out[1 : len(values) + 1] = ~(values <= electronegativity("S"))
    return out


@lru_cache(maxsize=128)
def electronegativity(symbol: str) -> float:
    """Return the electronegativity of an element on Pauling's scale, from pymatgen; NaN where there is none."""
    from pymatgen.core import Element  # noqa: PLC0415 - an extra

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns about elements without a value
        return float(Element(symbol).X)


@lru_cache(maxsize=1 << 16)
def by_electronegativity(symbols: tuple[str, ...]) -> list[str]:
    """Return symbols by ascending electronegativity; elements without a value come first."""

    def key(symbol: str) -> tuple[float, str]:
        value = electronegativity(symbol)
        return (-1.0 if math.isnan(value) else value, symbol)

    return sorted(symbols, key=key)


def _reduced_formula(symbols: Sequence[str], counts: Sequence[int]) -> str:
    from pymatgen.core import Composition  # noqa: PLC0415 - an extra

    return str(Composition(dict(zip(symbols, counts, strict=True))).reduced_formula)
