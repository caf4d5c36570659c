"""Hulls equal pymatgen's phase diagrams for any number of elements, and obey the laws of convex functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from ase.data import chemical_symbols
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening.chemistry.composition import Compositions, parsed
from equiscreen.screening.convex_hull import geometry as hull_geometry
from equiscreen.screening.convex_hull.geometry import Hulls
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

TOLERANCE = 1e-9


@dataclass
class Case:
    """A chemical system with entries, and the compositions to evaluate its hull at."""

    system: tuple[int, ...]
    compositions: Compositions
    energy: np.ndarray[tuple[int], np.dtype[np.float64]]
    asked: np.ndarray[tuple[int], np.dtype[np.int64]]

    def entry(self, number: int) -> PDEntry:
        counts = dict(zip(self.compositions.symbols(number), self.compositions.counts(number), strict=True))
        return PDEntry(Composition(counts), float(self.energy[number]) * sum(counts.values()))

    def entries(self) -> dict[int, PDEntry]:
        return {number: self.entry(number) for number in np.flatnonzero(np.isfinite(self.energy)).tolist()}

    def composition(self, number: int) -> Composition:
        return Composition(dict(zip(self.compositions.symbols(number), self.compositions.counts(number), strict=True)))


def random_case(seed: int, size: int, count: int, *, depth: float = 0.5, grid: int = 5) -> Case:
    rng = np.random.default_rng(seed)
    system = tuple(sorted(rng.choice(np.arange(3, 80), size, replace=False).tolist()))
    compositions, energies = Compositions(), {}
    elements = dict(zip(system, rng.normal(-4, 2, size).tolist(), strict=True))
    for element, energy in elements.items():
        energies[compositions.add([(element, 1)])] = energy
    for _ in range(count):
        part = rng.choice(system, int(rng.integers(2, size + 1)), replace=False).tolist() if size > 1 else []
        amounts = [(element, int(rng.integers(1, grid))) for element in part]
        if len(amounts) > 1:
            elemental = sum(elements[element] * n for element, n in amounts) / sum(n for _, n in amounts)
            energies[compositions.add(amounts)] = elemental + rng.normal(-0.2, depth)
    asked = {compositions.add([(e, int(rng.integers(1, 7))) for e in system]) for _ in range(12)}
    asked |= {number for number in energies if compositions.system(number) == system}
    energy = np.full(len(compositions), np.nan)
    energy[list(energies)] = list(energies.values())
    return Case(system, compositions, energy, np.array(sorted(asked), dtype=np.int64))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 5), count=st.integers(0, 40))
def test_the_hull_is_that_of_a_phase_diagram(seed: int, size: int, count: int) -> None:
    case = random_case(seed, size, count)
    diagram = PhaseDiagram(list(case.entries().values()))
    found = Hulls(case.compositions, case.energy).at(case.system, case.asked)
    expected = [diagram.get_hull_energy_per_atom(case.composition(number)) for number in case.asked.tolist()]
    assert np.allclose(found.energy, expected, rtol=0, atol=TOLERANCE)
    # The products add up to the composition, and their energies to that of the hull.
    assert np.allclose(found.amounts.sum(axis=1), 1)
    for row, number in enumerate(case.asked.tolist()):
        total: dict[str, float] = {}
        energy = 0.0
        for product, amount in zip(found.products[row].tolist(), found.amounts[row].tolist(), strict=True):
            if amount:
                energy += amount * case.energy[product]
                for symbol, fraction in case.composition(product).fractional_composition.as_dict().items():
                    total[symbol] = total.get(symbol, 0) + amount * fraction
        wanted = case.composition(number).fractional_composition.as_dict()
        assert total == pytest.approx(wanted, abs=1e-9)
        assert energy == pytest.approx(found.energy[row], abs=TOLERANCE)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 5), count=st.integers(1, 30))
def test_a_hull_without_a_phase_is_that_of_the_others(seed: int, size: int, count: int) -> None:
    case = random_case(seed, size, count, depth=0.2)
    own = [n for n in case.asked.tolist() if np.isfinite(case.energy[n]) and len(case.compositions.system(n)) > 1]
    assume(own)
    entries = case.entries()
    hulls = Hulls(case.compositions, case.energy)
    for number in own[:3]:
        found = hulls.without(case.system, number)
        diagram = PhaseDiagram([entry for other, entry in entries.items() if other != number])
        expected = diagram.get_hull_energy_per_atom(case.composition(number))
        assert found.energy[0] == pytest.approx(expected, abs=TOLERANCE)
        assert number not in found.products[found.amounts > 0]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 5))
def test_linear_programs_find_the_same(seed: int, size: int) -> None:
    case = random_case(seed, size, 30)
    hulls = Hulls(case.compositions, case.energy)
    facets = hulls.at(case.system, case.asked).energy
    entries = hulls._entries(case.system)
    fractions = case.compositions.fractions(case.asked)
    programs = hull_geometry._solved(entries, fractions).energy + hulls.elemental(case.system, fractions)
    assert np.allclose(facets, programs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [6, 7, 9])
def test_many_elements(size: int) -> None:
    case = random_case(1, size, 60)
    diagram_energy = Hulls(case.compositions, case.energy).at(case.system, case.asked[:6]).energy
    entries = list(case.entries().values())
    for number, found in zip(case.asked[:6].tolist(), diagram_energy.tolist(), strict=True):
        # Any mixture of entries is an upper bound, and removing entries can only raise the hull.
        fewer = case.energy.copy()
        fewer[number] = np.nan
        assert found <= Hulls(case.compositions, fewer).at(case.system, np.array([number])).energy[0] + TOLERANCE
    assert len(entries) > size


@pytest.mark.parametrize("size", [3, 4])
def test_entries_on_a_plane_and_on_lines(size: int) -> None:
    """The case is degenerate: formation energies of the compounds depend linearly on the composition."""
    case = random_case(3, size, 0)
    compositions = case.compositions
    numbers = [compositions.add([(a, i), (b, 6 - i)]) for i in range(1, 6) for a, b in [case.system[:2]]]
    numbers += [
        compositions.add([(a, i), (b, j), (c, 6 - i - j)])
        for i in (1, 2, 3)
        for j in (1, 2)
        for a, b, c in [case.system[:3]]
    ]
    energy = np.full(len(compositions), np.nan)
    energy[: len(case.energy)] = case.energy
    for number in numbers:
        fraction = dict(zip(compositions.system(number), compositions.fractions([number])[0], strict=True))
        elemental = sum(case.energy[compositions.add([(e, 1)])] * x for e, x in fraction.items())
        energy[number] = elemental - fraction[case.system[0]]
    lowest = compositions.add([(case.system[0], 1), (case.system[1], 1)])
    wide = Case(case.system, compositions, energy, case.asked)
    found = Hulls(compositions, energy).at(case.system, case.asked)
    diagram = PhaseDiagram(list(wide.entries().values()))
    expected = [diagram.get_hull_energy_per_atom(wide.composition(number)) for number in case.asked.tolist()]
    assert np.allclose(found.energy, expected, rtol=0, atol=TOLERANCE)
    assert lowest in numbers


def test_a_shift_of_the_elements_shifts_the_hull() -> None:
    case = random_case(5, 4, 30)
    shift = dict(zip(case.system, (0.3, -1.0, 2.0, 0.1), strict=True))
    shifted = case.energy.copy()
    for number in np.flatnonzero(np.isfinite(case.energy)).tolist():
        x = case.compositions.fractions([number])[0]
        shifted[number] += sum(shift[e] * f for e, f in zip(case.compositions.system(number), x, strict=True))
    before = Hulls(case.compositions, case.energy).at(case.system, case.asked)
    after = Hulls(case.compositions, shifted).at(case.system, case.asked)
    expected = case.compositions.fractions(case.asked) @ np.array(list(shift.values()))
    assert np.allclose(after.energy - before.energy, expected, rtol=0, atol=TOLERANCE)


def test_a_missing_element_is_named_and_leaves_no_hull() -> None:
    case = random_case(6, 3, 10)
    lacking = case.energy.copy()
    lacking[case.compositions.add([(case.system[1], 1)])] = np.nan
    hulls = Hulls(case.compositions, lacking)
    assert hulls.missing(case.system) == [case.system[1]]
    assert np.isnan(hulls.at(case.system, case.asked).energy).all()


@settings(deadline=None)
@given(counts=st.dictionaries(st.integers(1, 94), st.integers(1, 40), min_size=1, max_size=6), factor=st.integers(1, 4))
def test_formulas_are_read_back(counts: dict[int, int], factor: int) -> None:
    compositions = Compositions()
    number = compositions.add([(element, count * factor) for element, count in counts.items()])
    assert compositions.of_formula(compositions.formula(number)) == number
    text = "".join(f"{chemical_symbols[element]}{count}" for element, count in counts.items())
    assert compositions.of_formula(text) == number


@pytest.mark.parametrize("text", ["", "Xx2", "fe2o3", "Fe2.5O3", "0", "Fe0"])
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a chemical formula"):
        parsed(text)


def test_brackets_in_formulas() -> None:
    assert parsed("Ca3(PO4)2") == {20: 3, 15: 2, 8: 8}
