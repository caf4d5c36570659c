"""A ranked list as a table for people to read: as aligned text and as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import xarray as xr

from ...pipeline.plain_text import one_line
from .parquet import as_words
from .reader import flag_meanings
from .scores import UNRELAXED

CSV_FILE = "ranked.csv"
# Default and maximum number of rows in the printed table.
ROWS, MOST_ROWS = 10, 100
# Columns of numbers in the order of the table, each with its heading. The last one is shown only without any of the
# others, and the energy above the joint hull only without an energy above the hull.
_ENERGIES = {
    "energy_above_hull": "above hull",
    "energy_above_hull_std": "+-",
    "probability_near_hull": "probability near hull",
    "energy_above_model_hull": "above model hull",
    "energy_above_joint_hull": "above joint hull",
    "formation_energy_per_atom": "formation energy",
    "energy_per_atom": "energy",
}
_NEAR_HULL = "probability_near_hull"
_HULL, _JOINT_HULL, _ENERGY = "energy_above_hull", "energy_above_joint_hull", "energy_per_atom"
# Values of flag columns that a reader should notice, each with the text to print.
_FLAGS = {
    "charge_neutral": {"no": "not charge-neutral"},
    "electronegativity_ok": {"no": "electronegativities"},
    "has_magnetic_element": {"True": "magnetic"},
    "has_f_electrons": {"True": "f electrons"},
}
_STATUSES = ("status", "hull_status")


class RankedTable:
    """The rows of a selection, best first, with the columns that matter most to a reader.

    Example:
        >>> from equiscreen.screening import open_scores
        >>> RankedTable(open_scores("best/scores.zarr")).columns["formula"]
        ['Cu', 'Al', 'AlCu3', 'AlCu']

    Args:
        selection: Dataset with `rank`, as `screening.select` returns it.

    Attributes:
        columns: Values by name, one per row and best first. The names are the same as in the dataset;
            `space_group_symbol`, `known` (id of the known crystal, otherwise the novelty in words) and `flags` are
            added.
    """

    def __init__(self, selection: xr.Dataset) -> None:
        self._order = np.argsort(selection["rank"].values, kind="stable")
        self._units = {str(name): str(array.attrs.get("units", "")) for name, array in selection.variables.items()}
        self._selection = selection
        self._within = float((selection.attrs.get("hull") or {}).get("within", 0.0))
        self._numbers = self._shown_numbers()
        self.columns: dict[str, list[Any]] = {
            "rank": self._values("rank"),
            "structure_id": self._values("structure_id"),
            "formula": self._values("formula"),
            **{name: self._values(name) for name in self._numbers},
        }
        groups = self._space_groups()
        if groups is not None:
            self.columns["space_group"] = groups
            self.columns["space_group_symbol"] = [space_group_symbol(number) for number in groups]
        if "novelty" in selection.variables:
            self.columns["known"] = [
                name if word == "known" else word.replace("_", " ")
                for word, name in zip(self._words("novelty"), self._values("known_as"), strict=True)
            ]
        if "volume_change" in selection.variables:
            self.columns["volume_change"] = self._values("volume_change")
        self.columns["flags"] = self._flags()

    def __len__(self) -> int:
        return len(self._order)

    def text(self, rows: int = ROWS) -> str:
        """Return the best rows as lines of aligned columns, under headings and units.

        Args:
            rows: Maximum number of rows.
        """
        shown = self._printed(min(rows, len(self)))
        widths = {name: max(map(len, cells)) for name, cells in shown.items()}
        lines = []
        for place in range(len(shown["rank"])):
            cells = [
                cells[place].rjust(widths[name]) if self._is_right(name) else cells[place].ljust(widths[name])
                for name, cells in shown.items()
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(line for line in lines if line)

    def write_csv(self, path: Path) -> None:
        """Write all rows as a CSV file, whose headings are the names of the columns.

        Numbers are written with all digits, in the units of the dataset: eV/atom for energies per atom, a fraction for
        `volume_change`. Missing values are empty.
        """
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(self.columns)
            for row in zip(*self.columns.values(), strict=True):
                table.writerow("" if value != value else value for value in row)  # noqa: PLR0124 - NaN

    def _shown_numbers(self) -> list[str]:
        """Return the names of the numeric columns: those used for ranking, then the usual ones."""
        recipe = self._selection.attrs.get("selection") or {}
        criteria = recipe.get("criteria") or {}
        given = criteria.get("pareto") or ()
        asked = [name for text in ([given] if isinstance(given, str) else given) for name in text.split(",")]
        asked = [name.strip().removeprefix("-") for name in (criteria.get("by") or "", *asked)]
        usual: list[str] = []
        for name in _ENERGIES:
            found = next((one for one in (name, name + UNRELAXED) if one in self._selection.variables), None)
            is_second = (name == _ENERGY and usual) or (
                name == _JOINT_HULL and any(one.startswith(_HULL) for one in usual)
            )
            if found is not None and not is_second:
                usual.append(found)
        table = {"rank", "structure_id", "formula", "space_group", "volume_change"}
        own = [name for name in ("pareto_front", *asked) if name in self._selection.variables and name not in table]
        return list(dict.fromkeys([*own, *usual]))

    def _values(self, name: str) -> list[Any]:
        values: list[Any] = self._selection[name].values[self._order].tolist()
        return values

    def _words(self, name: str) -> list[str]:
        """Return the values of a flag column or a boolean column, as words."""
        array = self._selection[name]
        meanings = flag_meanings(array.attrs)
        values = array.values[self._order]
        return [str(word) for word in (as_words(values, meanings) if meanings else values).tolist()]

    def _space_groups(self) -> list[int] | None:
        """Return the number of each row's space group, 0 for none; None if the dataset has no space groups."""
        if "space_group" in self._selection.variables:
            return self._values("space_group")
        if "prototype_label" not in self._selection.variables:
            return None
        parts = [str(label).split("_") for label in self._values("prototype_label")]  # ABC3_cP5_221_a_b_c
        return [int(one[2]) if len(one) > 2 and one[2].isdecimal() else 0 for one in parts]

    def _flags(self) -> list[str]:
        found: list[list[str]] = [[] for _ in range(len(self))]
        for name in _STATUSES:
            if name in self._selection.variables:
                for flags, word in zip(found, self._words(name), strict=True):
                    flags.extend([] if word == "ok" else [word.replace("_", " ")])
        for name, texts in _FLAGS.items():
            if name in self._selection.variables:
                for flags, word in zip(found, self._words(name), strict=True):
                    flags.extend([texts[word]] if word in texts else [])
        return [", ".join(flags) for flags in found]

    def _is_right(self, name: str) -> bool:
        """Return whether a column is right-aligned."""
        return name in ("rank", "volume_change") or name in self._numbers

    def _printed(self, rows: int) -> dict[str, list[str]]:
        """Return the cells of the printed table by column: heading, unit, then the rows."""
        out = {"rank": ["rank", "", *map(str, self.columns["rank"][:rows])]}
        out["formula"] = ["formula", "", *map(one_line, self.columns["formula"][:rows])]
        for name in self._numbers:
            bare = name.removesuffix(UNRELAXED)
            heading = _ENERGIES.get(bare, bare.replace("_", " ")) + (", unrelaxed" if bare != name else "")
            unit = self._units[name].removeprefix("1")
            if bare == _NEAR_HULL:
                heading, unit = "probability", f"<= {self._within:g} eV/atom"
            out[name] = [heading, unit, *map(_number, self.columns[name][:rows])]
        if "space_group_symbol" in self.columns:
            out["space_group_symbol"] = ["space group", "", *self.columns["space_group_symbol"][:rows]]
        if "known" in self.columns:
            out["known"] = ["known as", "", *map(one_line, self.columns["known"][:rows])]
        if "volume_change" in self.columns:
            changes = [_number(100.0 * value, 1) for value in self.columns["volume_change"][:rows]]
            out["volume_change"] = ["volume change", "%", *changes]
        if any(self.columns["flags"][:rows]):
            out["flags"] = ["flags", "", *self.columns["flags"][:rows]]
        out["structure_id"] = ["id", "", *map(one_line, self.columns["structure_id"][:rows])]
        return out


def _number(value: float, digits: int = 3) -> str:
    """Return a number as text; "-" if it is missing."""
    if value != value:  # noqa: PLR0124 - NaN
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def space_group_symbol(number: int) -> str:
    """Return the Hermann-Mauguin symbol of a space group in its standard setting, such as Fm-3m; "-" for none."""
    found = gemmi.find_spacegroup_by_number(number) if number else None
    if found is None:
        return "-"
    short = str(found.short_name())  # gemmi writes H for rhombohedral groups in hexagonal axes
    return f"R{short[1:]}" if found.hm.startswith("R") else short
