"""The rows of a hull: energies of candidates in two passes, before and after the hulls are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from ...pipeline.runs.parts import PartArray, PartKey, PartManifest, write_part
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import Staging
from ...pipeline.store.schema import STRUCTURE, TEXT, ArraySpec, flags
from ..chemistry.composition import Compositions
from .energies import CHUNK_ROWS, UNCORRECTED, ScoredEnergies
from .levels import SAME_ENERGY, CompetingPhases, Levels, levels_of, lowest_of
from .mp2020 import MP2020
from .references import Gathered, References

HULL_STATUSES = ("ok", "no_energy", "missing_reference")
OK, NO_ENERGY, MISSING_REFERENCE = range(len(HULL_STATUSES))
_SUFFIX = "_unrelaxed"
_BOUND = "; a lower bound, since only candidates compete"
# Rounding of a distance that cannot be negative, eV/atom.
_ROUNDING = 1e-9
_ENERGY_COLUMNS = {
    "corrected_energy_per_atom": "energy that the hull is made of: with corrections, where its scheme has any",
    "formation_energy_per_atom": "corrected energy less that of the elements among the references",
    "energy_above_hull": "corrected energy above the hull of the references, the structure itself not among them; "
    "negative = it would be a corner of the hull",
    "energy_above_joint_hull": "corrected energy above the hull of references and all candidates; "
    "negative only where the model extrapolates, since such energies are no part of a hull",
}
_MEMBER_COLUMNS = {
    "energy_above_hull_std": ("standard deviation of energy_above_hull among the members of the ensemble", "eV/atom"),
    "probability_below_hull": (
        "probability of a negative energy_above_hull, from the mean and standard deviation of the members as if they "
        "were normally distributed",
        "1",
    ),
}
_OTHER_COLUMNS = ("correction_per_atom", "decomposition", "hull_status")


def hull_arrays(*, relaxed: bool, members: bool, lower_bound: bool) -> tuple[ArraySpec, ...]:
    """Arrays that a hull adds to scores."""
    suffix = "" if relaxed else _SUFFIX

    def spec(name: str, dtype: str, description: str, **attrs: Any) -> ArraySpec:
        return ArraySpec(name, (STRUCTURE,), dtype, {"description": description, **attrs})

    bound = _BOUND if lower_bound else ""
    specs = [
        spec(f"{name}{suffix}", "float64", text + (bound if "above" in name else ""), units="eV/atom")
        for name, text in _ENERGY_COLUMNS.items()
    ]
    if members:
        specs += [
            spec(f"{name}{suffix}", "float64", text, units=unit) for name, (text, unit) in _MEMBER_COLUMNS.items()
        ]
    return (
        *specs,
        spec("correction_per_atom", "float64", "correction that the energy was given, once", units="eV/atom"),
        spec("decomposition", TEXT, "phases that the structure competes with: fraction of its atoms in each, and ids"),
        spec("hull_status", "uint8", "how it went", **flags(HULL_STATUSES)),
    )


def _all_columns() -> frozenset[str]:
    energies = (*_ENERGY_COLUMNS, *_MEMBER_COLUMNS)
    return frozenset((*energies, *(f"{name}{_SUFFIX}" for name in energies), *_OTHER_COLUMNS))


class HullRun:
    """The passes over the rows of the candidates.

    Args:
        candidates: The rows.
        corrections: For energies that need them.

    Attributes:
        compositions: Of candidates and references.
        references: What candidates are measured against; theirs, if there are no others.
        levels: The hull at each composition.
        missing: How many rows lack a reference of which element.
    """

    compositions: Compositions
    references: References
    levels: Levels
    missing: Mapping[str, int]

    def __init__(self, candidates: ScoredEnergies, corrections: MP2020 | None) -> None:
        self.candidates, self.corrections = candidates, corrections
        self.compositions = Compositions()
        self._suffix = "" if candidates.relaxed else _SUFFIX
        self._lower_bound = False

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """All arrays of the output."""
        added = hull_arrays(
            relaxed=self.candidates.relaxed, members=self.candidates.n_members > 0, lower_bound=self._lower_bound
        )
        return (*self._carried(), *added)

    def _carried(self) -> tuple[ArraySpec, ...]:
        """Arrays of the input; an older hull's columns are made anew."""
        own = _all_columns()
        specs = []
        for name, array in sorted(self.candidates.arrays.items()):
            dims = tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ())
            if name in own or not dims or dims[0] != STRUCTURE:
                continue
            dtype = TEXT if array.dtype.kind in "TO" else str(array.dtype)
            specs.append(ArraySpec(name, dims, dtype, dict(array.attrs), tuple(array.shape[1:])))
        return tuple(specs)

    def read(self, folder: Path, bar: ProgressReport) -> None:
        """First pass: composition, corrected energy and correction of each row, into files.

        Args:
            folder: For them.
            bar: Progress.

        Raises:
            StoreError: The scores or their graph store are damaged, or no row has an energy.
        """
        size = len(self.candidates)

        def column(name: str, dtype: str) -> Any:
            return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(size,))

        self._composition = column("composition", "int64")
        self._energy, self._correction = column("energy", "float64"), column("correction", "float64")
        self._rival = column("rival", "float64")  # the energy, where it may be part of a hull
        scheme = self.corrections if self.candidates.scheme == UNCORRECTED else None
        found = 0
        for chunk in self.candidates.chunks(self.compositions, scheme):
            rows = slice(chunk.start, chunk.stop)
            self._composition[rows], self._energy[rows] = chunk.composition, chunk.energy
            self._correction[rows], self._rival[rows] = chunk.correction, np.where(chunk.competes, chunk.energy, np.nan)
            found += int(np.isfinite(chunk.energy).sum())
            bar.advance(chunk.stop - chunk.start)
        if not found:
            raise StoreError(f"{self.candidates.path}: not one of {size} structures has an energy")

    def _chunks(self) -> list[tuple[int, int]]:
        size = len(self.candidates)
        return [(start, min(start + CHUNK_ROWS, size)) for start in range(0, size, CHUNK_ROWS)]

    def _ids(self, start: int, stop: int) -> NDArray[np.object_]:
        return np.array(self.candidates.column("structure_id", start, stop).tolist(), dtype=object)

    def find_levels(self, references: References | None, bar: ProgressReport) -> None:
        """The hull at all compositions.

        Args:
            references: None lets the candidates be their own.
            bar: Progress.
        """
        self._lower_bound = references is None
        n = len(self.compositions)
        lowest, present = np.full(n, np.nan), np.zeros(n, dtype=bool)
        for start, stop in self._chunks():
            np.fmin.at(lowest, self._composition[start:stop], self._rival[start:stop])
            present[self._composition[start:stop]] = True
        self.references = self._own_references(lowest) if references is None else references
        self.competing = CompetingPhases(self.references, self.compositions)
        needs = np.zeros(n, dtype=bool)
        has_reference = np.isfinite(lowest_of(self.references, n))
        for start, stop in self._chunks():
            composition = np.asarray(self._composition[start:stop])
            if has_reference[composition].any():
                own, _ = self.competing.of(composition, np.asarray(self._energy[start:stop]), self._ids(start, stop))
                needs[composition[own]] = True
        bar.expect(bar.total + int(present.sum()))
        self.levels = levels_of(self.compositions, np.flatnonzero(present), self.references, lowest, needs, bar.advance)
        self.missing = self._missing()

    def _own_references(self, lowest: NDArray[np.float64]) -> References:
        """The candidates as references: of each composition the lowest, and the next that is another."""
        second = np.full(len(lowest), np.nan)
        for start, stop in self._chunks():
            composition, energy = self._composition[start:stop], np.asarray(self._rival[start:stop])
            other = energy > lowest[composition] + SAME_ENERGY
            np.fmin.at(second, composition[other], energy[other])
        found = Gathered()
        waiting = {(number, value) for values in (lowest, second) for number, value in enumerate(values.tolist())}
        for start, stop in self._chunks():
            composition, energy = self._composition[start:stop], np.asarray(self._rival[start:stop])
            wanted = np.flatnonzero((energy == lowest[composition]) | (energy == second[composition]))
            if len(wanted) == 0:
                continue
            ids = self._ids(start, stop)
            members = self._members(start, stop)
            for row in wanted.tolist():
                key = (int(composition[row]), float(energy[row]))
                if key in waiting:  # the first of several of the same energy
                    waiting.discard(key)
                    found.add(*key, ids[row], "", None if members is None else members[row])
        return References.of(found, self.candidates.n_members, ())

    def _members(self, start: int, stop: int) -> NDArray[np.float64] | None:
        """float64[n, members], corrected, eV/atom."""
        if not self.candidates.n_members:
            return None
        n_atoms = self.candidates.column("n_atoms", start, stop)[:, None]
        energies = self.candidates.column("energy_members", start, stop) / n_atoms
        return np.asarray(energies + np.asarray(self._correction[start:stop])[:, None])

    def _missing(self) -> dict[str, int]:
        """Rows by the elements that they lack references of, the most frequent first."""
        known = {
            self.compositions.system(number)[0]
            for number in self.references.composition.tolist()
            if len(self.compositions.system(number)) == 1
        }
        rows = np.zeros(len(self.compositions), dtype=np.int64)
        for start, stop in self._chunks():
            rows += np.bincount(self._composition[start:stop], minlength=len(rows))
        counts: dict[str, int] = {}
        for number in np.flatnonzero(rows).tolist():
            for element in self.compositions.system(number):
                if element not in known:
                    symbol = chemical_symbols[element]
                    counts[symbol] = counts.get(symbol, 0) + int(rows[number])
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def write_parts(self, staging: Staging, bar: ProgressReport) -> list[PartManifest]:
        """Second pass: parts with all arrays of the output."""
        done = staging.manifests()
        for number, (start, stop) in enumerate(self._chunks()):
            key = PartKey(number, 0, stop - start)
            if key not in done:
                arrays = self._columns(start, stop)
                status = np.bincount(np.asarray(arrays["hull_status"]), minlength=len(HULL_STATUSES)).tolist()
                below = int((np.asarray(arrays[f"energy_above_hull{self._suffix}"]) < 0).sum())
                for spec in self._carried():
                    values = self.candidates.column(spec.name, start, stop)
                    arrays[spec.name] = values.tolist() if spec.dtype == TEXT else values
                notes = {"status": status, "below": below}
                done[key] = write_part(staging.parts, key, arrays, {"read": stop - start}, notes)
            bar.advance(stop - start)
        return [done[key] for key in sorted(done)]

    def _columns(self, start: int, stop: int) -> dict[str, PartArray]:
        """What the hull adds to some rows."""
        composition, energy = np.asarray(self._composition[start:stop]), np.asarray(self._energy[start:stop])
        levels = self.levels
        own, others = self.competing.of(composition, energy, self._ids(start, stop))
        hull = np.where(own, levels.alone[composition], levels.hull[composition])
        rival = {row: places[0] for row, places in others.items() if places}
        lower = {row: place for row, place in rival.items() if self.references.energy[place] < hull[row]}
        for row, place in lower.items():
            hull[row] = self.references.energy[place]
        above, joint = energy - hull, energy - levels.joint[composition]
        joint = np.where((joint < 0) & (joint > -_ROUNDING), 0.0, joint)
        status = np.where(np.isnan(energy), NO_ENERGY, np.where(np.isnan(above), MISSING_REFERENCE, OK))
        columns = {
            "corrected_energy_per_atom": energy,
            "formation_energy_per_atom": energy - levels.elemental[composition],
            "energy_above_hull": above,
            "energy_above_joint_hull": joint,
        }
        members = self._members(start, stop)
        if members is not None:
            std, probability = self._spread(members, composition, hull, own, others)
            columns |= {"energy_above_hull_std": std, "probability_below_hull": probability}
        arrays: dict[str, PartArray] = {f"{name}{self._suffix}": values for name, values in columns.items()}
        arrays["correction_per_atom"] = np.asarray(self._correction[start:stop])
        arrays["hull_status"] = status.astype(np.uint8)
        arrays["decomposition"] = self._decompositions(composition, own, lower, status)
        return arrays

    def _spread(
        self,
        members: NDArray[np.float64],
        composition: NDArray[np.int64],
        hull: NDArray[np.float64],
        own: NDArray[np.bool_],
        others: Mapping[int, list[int]],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard deviation of the distances of the members, and the probability of a negative one."""
        levels, energies = self.levels, self.references.members
        if levels.members is None or levels.members_alone is None or energies is None:
            distance = members - hull[:, None]
        else:
            hulls = np.where(own[:, None], levels.members_alone[composition], levels.members[composition])
            for row, places in others.items():
                if places:
                    hulls[row] = np.minimum(hulls[row], energies[places].min(axis=0))
            distance = members - hulls
        mean = distance.mean(axis=1)
        std = distance.std(axis=1, ddof=1) if distance.shape[1] > 1 else np.zeros(len(distance))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(std > 0, -mean / std, np.where(mean < 0, np.inf, -np.inf))
        z = np.where(np.isnan(mean), np.nan, z)
        probability = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z.tolist()])
        return std, probability

    def _decompositions(
        self,
        composition: NDArray[np.int64],
        own: NDArray[np.bool_],
        lower: Mapping[int, int],
        status: NDArray[np.int64],
    ) -> list[str]:
        """Products of each row as text."""
        known: dict[tuple[int, bool], str] = {}
        out = []
        for row, (number, alone) in enumerate(zip(composition.tolist(), own.tolist(), strict=True)):
            if status[row] == MISSING_REFERENCE:
                out.append("")
            elif row in lower:
                out.append(_phase(1.0, self.compositions.formula(number), self.references.names[lower[row]]))
            else:
                if (number, alone) not in known:
                    known[number, alone] = self._decomposition(number, alone=alone)
                out.append(known[number, alone])
        return out

    def _decomposition(self, number: int, *, alone: bool) -> str:
        products = (self.levels.products_alone.of(number) if alone else []) or self.levels.products.of(number)
        phases = [
            _phase(amount, self.compositions.formula(product), self.competing.name(product))
            for product, amount in products
        ]
        return " + ".join(phases)


def _phase(amount: float, formula: str, name: str) -> str:
    text = f"{amount:.4f}".rstrip("0").rstrip(".")
    return f"{text} {formula} ({name})" if name else f"{text} {formula}"
