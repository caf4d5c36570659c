"""Columns that a selection derives from formulas and structures, computed only for the rows that need them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.store.schema import TEXT, flags, structure_array
from ...pipeline.structures.structure import Structure
from ..chemistry.charge_balance import BALANCE, UNKNOWN, balance, load_smact
from ..chemistry.elements import chemical_system, has_f_electrons, has_magnetic_element
from ..chemistry.prototype import PrototypeLabels
from ..dataset.reader import ScoresReader
from .novelty import NOVELTY, KnownCrystals

# Marks derived columns, so that selecting from a selection recomputes them.
ROLE = "derived"
_CACHED_ROWS = 1_000_000


derived_array = partial(structure_array, role=ROLE)
OF_FORMULA = (
    derived_array("chemical_system", TEXT, "elements in alphabetical order"),
    derived_array(
        "has_magnetic_element",
        "bool",
        "whether the structure contains an element whose ions commonly have unpaired d or f electrons",
    ),
    derived_array("has_f_electrons", "bool", "whether the structure contains a lanthanide or an actinide"),
    derived_array(
        "charge_neutral",
        "uint8",
        "whether known oxidation states, one per element, make the formula charge-neutral (SMACT); metals need none",
        **flags(BALANCE),
    ),
    derived_array(
        "electronegativity_ok",
        "uint8",
        "whether anions are more electronegative than cations in a neutral combination of oxidation states (SMACT)",
        **flags(BALANCE),
    ),
)
OF_STRUCTURE = (
    derived_array(
        "prototype_label",
        TEXT,
        "amounts of the elements, Pearson symbol, space group and Wyckoff letters, independent of the choice of origin",
    ),
)
OF_KNOWN = (
    derived_array("novelty", "uint8", "whether the structure is among the known crystals", **flags(NOVELTY)),
    derived_array("known_as", TEXT, "id of the matching known crystal"),
)


class DerivedColumns:
    """Derived columns of a scores dataset.

    Args:
        scores: The dataset.
        known: Known crystals that structures are compared with; None to skip the columns of novelty.
        needed: Columns that a filter refers to.

    Attributes:
        specs: Definitions of the columns, by name.
        notes: Notes on columns that are not computed or not replaced, with the reasons.

    Raises:
        ConfigError: A column in `needed` requires a package that is not installed.
    """

    def __init__(self, scores: ScoresReader, known: KnownCrystals | None, needed: Collection[str] = ()) -> None:
        self._scores, self._known = scores, known
        taken = {name for name, spec in scores.specs.items() if spec.attrs.get("role") != ROLE}
        given = (*OF_FORMULA, *OF_STRUCTURE, *(OF_KNOWN if known is not None else ()))
        self.specs = {spec.name: spec for spec in given if spec.name not in taken}
        self.notes = [
            f"the scores already have a column {spec.name}, which was kept" for spec in given if spec.name in taken
        ]
        self._rules = True
        try:
            load_smact()
        except ConfigError as error:
            if {"charge_neutral", "electronegativity_ok"} & set(needed):
                raise
            self._rules = False
            self.notes.append(str(error))
        self._labels = PrototypeLabels()
        self._cache: dict[str, dict[int, Any]] = {}

    def columns(self, names: Collection[str], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return columns by name, for some rows of the scores.

        Args:
            names: Names of columns, derived or of the scores.
            rows: int64[n], rows of the scores.

        Raises:
            StoreError: The scores, their graph store or the known crystals cannot be read.
        """
        own = [name for name in names if name in self.specs]
        out = {name: self._scores.rows(name, rows) for name in names if name not in self.specs}
        self._fill(own, rows)
        for name in own:
            found = self._cache[name]
            dtype: Any = np.dtypes.StringDType() if self.specs[name].dtype == TEXT else self.specs[name].dtype
            out[name] = np.array([found[row] for row in rows.tolist()], dtype=dtype)
        return out

    def _fill(self, names: Collection[str], rows: NDArray[np.int64]) -> None:
        """Compute the columns that are not cached yet."""
        of_formula = {spec.name for spec in OF_FORMULA}
        for group, compute in (
            ([name for name in names if name in of_formula], self._of_formulas),
            ([name for name in names if name not in of_formula], self._of_structures),
        ):
            missing = [name for name in group if not self._cache.get(name, {}).keys() >= set(rows.tolist())]
            if missing:
                compute(missing, rows)

    def _of_formulas(self, names: Collection[str], rows: NDArray[np.int64]) -> None:
        makers: dict[str, Callable[[str], Any]] = {
            "chemical_system": chemical_system,
            "has_magnetic_element": has_magnetic_element,
            "has_f_electrons": has_f_electrons,
            "charge_neutral": lambda formula: self._balance(formula, electronegativity=False),
            "electronegativity_ok": lambda formula: self._balance(formula, electronegativity=True),
        }
        formulas = self._scores.rows("formula", rows).tolist()
        for name in names:
            self._keep(name, rows, [makers[name](formula) for formula in formulas])

    def _balance(self, formula: str, *, electronegativity: bool) -> int:
        return balance(formula, electronegativity=electronegativity) if self._rules else UNKNOWN

    def _of_structures(self, names: Collection[str], rows: NDArray[np.int64]) -> None:
        structures = self._scores.structures(rows)
        if "prototype_label" in names:
            self._keep("prototype_label", rows, [self._labels.label(structure) for structure in structures])
        if self._known is not None and {"novelty", "known_as"} & set(names):
            self._keep_known(self._known, rows, structures)

    def _keep_known(self, known: KnownCrystals, rows: NDArray[np.int64], structures: list[Structure]) -> None:
        found = [known.find(structure) for structure in structures]
        self._keep("novelty", rows, [place for place, _ in found])
        self._keep("known_as", rows, [name for _, name in found])

    def _keep(self, name: str, rows: NDArray[np.int64], values: list[Any]) -> None:
        cache = self._cache.setdefault(name, {})
        if len(cache) > _CACHED_ROWS:
            cache.clear()
        cache.update(zip(rows.tolist(), values, strict=True))
