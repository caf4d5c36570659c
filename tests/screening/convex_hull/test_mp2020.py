"""MP2020 corrections equal pymatgen's for real crystals, random compositions, and every type of anion."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.readers.cif import structure_from_cif
from equiscreen.screening.chemistry.composition import parsed
from equiscreen.screening.convex_hull.mp2020 import MP2020, anion_types
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition
from pymatgen.core import Structure as PymatgenStructure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

from .hull_data import rows_of_mp

# Float64 rounding: the same numbers are summed in another order.
TOLERANCE = 1e-12
# Metals with and without a Hubbard U, all anions with a correction, and elements of equal electronegativity.
ELEMENTS = tuple(parsed("HCNOFNaSiSClCuVCrMnFeCoNiGeSeBrMoPdSbTeIWLiAlIrBaLaHgXe"))


@pytest.fixture(scope="module")
def scheme() -> MP2020:
    return MP2020()


def of_pymatgen(entry: ComputedEntry) -> float:
    """Pymatgen's correction of an entry (eV/atom)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = MaterialsProject2020Compatibility(check_potcar=False).process_entry(entry)
    assert done is not None
    return float(done.correction) / done.composition.num_atoms


def parameters(scheme: MP2020, symbols: list[str]) -> dict[str, object]:
    return {"run_type": "GGA+U", "hubbards": scheme.hubbards(symbols)}


def corrections(scheme: MP2020, structures: list[Structure]) -> list[float]:
    """Our corrections of structures (eV/atom)."""
    oxides, sulfides = anion_types(GraphBlock.from_structures(structures, 5.0))
    found = []
    for structure, oxide, sulfide in zip(structures, oxides, sulfides, strict=True):
        numbers, counts = np.unique(structure.atomic_number, return_counts=True)
        symbols = tuple(chemical_symbols[number] for number in numbers)
        reduced = tuple((counts // np.gcd.reduce(counts)).tolist())
        found.append(scheme.per_atom(symbols, reduced, oxide, sulfide))
    return found


def of_structure(scheme: MP2020, structure: Structure) -> float:
    """Pymatgen's correction of a structure with sorted sites (eV/atom)."""
    symbols = [chemical_symbols[number] for number in structure.atomic_number]
    crystal = PymatgenStructure(structure.cell, symbols, structure.frac_coord).get_sorted_structure()
    return of_pymatgen(ComputedStructureEntry(crystal, 0.0, parameters=parameters(scheme, symbols)))


def check_crystals(scheme: MP2020, picked: list[dict[str, str]]) -> None:
    structures = [structure_from_cif(row["cif"])[0] for row in picked]
    for row, structure, mine in zip(picked, structures, corrections(scheme, structures), strict=True):
        assert mine == pytest.approx(of_structure(scheme, structure), abs=TOLERANCE), row["material_id"]


def test_real_crystals_are_corrected_as_pymatgen_corrects_them(scheme: MP2020, data: Path) -> None:
    rows = rows_of_mp(data)
    some = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:300]]
    delicate = [row for row in rows if "'O'" in row["elements"] and "'S'" in row["elements"]][:40]
    check_crystals(scheme, some + delicate)


@pytest.mark.slow
def test_all_real_crystals_are_corrected_as_pymatgen_corrects_them(scheme: MP2020, data: Path) -> None:
    check_crystals(scheme, rows_of_mp(data))


@settings(deadline=None, max_examples=150)
@given(
    amounts=st.dictionaries(
        st.sampled_from([chemical_symbols[number] for number in ELEMENTS]), st.integers(1, 6), min_size=1, max_size=4
    )
)
def test_compositions_are_corrected_as_pymatgen_corrects_them(amounts: dict[str, int]) -> None:
    scheme = shared_scheme()
    composition = Composition(amounts)
    reduced = composition.reduced_composition
    symbols = tuple(element.symbol for element in reduced.elements)
    divisor = np.gcd.reduce(list(amounts.values()))
    counts = tuple(amounts[symbol] // divisor for symbol in symbols)
    # Sorted as in a sorted structure: for equal electronegativities pymatgen's result depends on the order.
    ordered = Composition(
        {el.symbol: composition[el] for el in sorted(composition.elements, key=lambda el: (el.X, el.symbol))}
    )
    entry = ComputedEntry(ordered, 0.0, parameters=parameters(scheme, list(symbols)))
    expected = of_pymatgen(entry)
    found = scheme.per_atom(symbols, counts, *scheme.from_formula(symbols, counts))
    assert found == pytest.approx(expected, abs=TOLERANCE)


_SHARED: list[MP2020] = []


def shared_scheme() -> MP2020:
    if not _SHARED:
        _SHARED.append(MP2020())
    return _SHARED[0]


def test_noble_gases_have_no_electronegativity_and_no_correction(scheme: MP2020) -> None:
    assert scheme.per_atom(("He", "Na"), (1, 2), "oxide", "sulfide") == 0.0


@pytest.mark.parametrize(
    ("distances", "kind"),
    [((1.30,), "superoxide"), ((1.45,), "peroxide"), ((2.4,), "oxide"), ((1.28, 1.28), "ozonide")],
)
def test_oxygen_is_told_by_its_bonds(scheme: MP2020, distances: tuple[float, ...], kind: str) -> None:
    line = np.cumsum([0.0, *distances])
    positions = [[0, 0, 0], *([4 + x, 4, 4] for x in line)]
    structure = Structure.from_cartesian([19] + [8] * len(line), positions, np.eye(3) * 9, pbc=True)
    oxides, _ = anion_types(GraphBlock.from_structures([structure], 5.0))
    assert oxides == [kind]
    assert corrections(scheme, [structure])[0] == pytest.approx(of_structure(scheme, structure), abs=TOLERANCE)


def test_hydroxides_are_oxides_though_their_oxygen_is_close(scheme: MP2020) -> None:
    positions = [[0, 0, 0], [4, 4, 4], [4.95, 4, 4], [4, 5.45, 4]]
    structure = Structure.from_cartesian([11, 8, 1, 8], positions, np.eye(3) * 9, pbc=True)
    assert anion_types(GraphBlock.from_structures([structure], 5.0))[0] == ["oxide"]
    assert corrections(scheme, [structure])[0] == pytest.approx(of_structure(scheme, structure), abs=TOLERANCE)


def test_an_atom_and_its_own_image_are_no_bond() -> None:
    structure = Structure.from_cartesian([3, 8], [[0, 0, 0], [0.7, 2, 2]], np.diag([1.4, 9, 9]), pbc=True)
    assert anion_types(GraphBlock.from_structures([structure], 5.0))[0] == ["oxide"]


def test_the_u_of_the_scheme_is_that_of_oxides_and_fluorides(scheme: MP2020) -> None:
    assert scheme.hubbards(["Fe", "O"]) == {"Fe": 5.3}
    assert scheme.hubbards(["Fe", "O", "F"]) == {"Fe": 5.3}
    assert scheme.hubbards(["Fe", "S"]) == {}
    with_u = scheme.per_atom(("Fe", "O"), (2, 3), "oxide", "sulfide")
    assert with_u == pytest.approx((2 * -2.256 + 3 * -0.687) / 5)
