"""Energies above hull of all candidates: read energies, find the hull, and write the results of each chunk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import StoreError
from ...pipeline.runs.parts import PartArray, PartKey, PartManifest, write_part
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import Staging
from ...pipeline.store.schema import TEXT
from ..chemistry.composition import Compositions
from .columns import HULL_STATUSES, MISSING_REFERENCE, NO_ENERGY, OK, HullOptions, kept_arrays, suffix
from .energies import EnergyRows, ScoredEnergies, VibrationalFreeEnergies
from .geometry import Hulls
from .levels import Levels, levels_of, lowest_of
from .mp2020 import MP2020
from .own_phase import OwnPhases
from .references import References

# Number of rows of a part, all of which are in memory at once.
PART_ROWS = 32_768
# Maximum number of reference phases that a dataset records for diagrams.
_PHASES = 2_000
# Rounding errors (eV/atom) of an energy above the joint hull, which cannot be negative, and of an energy above hull
# that is zero.
_ROUNDING, _ZERO = 1e-9, 1e-12


@dataclass(frozen=True)
class CandidateEnergies:
    """Energies of all candidates, in memory-mapped files.

    Attributes:
        scores: The dataset of the candidates.
        compositions: Compositions of candidates and references.
        composition: int64[n], numbers of the compositions.
        energy: float64[n], corrected energies (eV/atom); NaN where the energy cannot be used.
        correction: float64[n], corrections included in the energies (eV/atom); NaN where the energy cannot be used.
        competes: bool[n], whether the energy may be part of a hull.
    """

    scores: ScoredEnergies
    compositions: Compositions
    composition: NDArray[np.int64]
    energy: NDArray[np.float64]
    correction: NDArray[np.float64]
    competes: NDArray[np.bool_]

    def chunks(self) -> Iterator[EnergyRows]:
        """Yield the rows of each part of the output."""
        for start in range(0, len(self.energy), PART_ROWS):
            yield self.rows(start, min(start + PART_ROWS, len(self.energy)))

    def rows(self, start: int, stop: int) -> EnergyRows:
        """Return the energies of consecutive rows."""
        rows = slice(start, stop)
        return EnergyRows(
            start,
            stop,
            np.asarray(self.composition[rows]),
            np.asarray(self.energy[rows]),
            np.asarray(self.correction[rows]),
            np.asarray(self.competes[rows]),
        )

    def counts(self) -> NDArray[np.int64]:
        """Return the number of rows of each composition: int64[n compositions]."""
        counts = np.zeros(len(self.compositions), dtype=np.int64)
        for rows in self.chunks():
            counts += np.bincount(rows.composition, minlength=len(counts))
        return counts

    def usable(self) -> NDArray[np.int64]:
        """Return the number of rows of each composition with a usable energy: int64[n compositions]."""
        counts = np.zeros(len(self.compositions), dtype=np.int64)
        for rows in self.chunks():
            counts += np.bincount(rows.composition[np.isfinite(rows.energy)], minlength=len(counts))
        return counts

    def lowest(self) -> NDArray[np.float64]:
        """Return the lowest competing energy of each composition: float64[n compositions], eV/atom; NaN if none."""
        lowest = np.full(len(self.compositions), np.nan)
        for rows in self.chunks():
            np.fmin.at(lowest, rows.composition, _competing_energy(rows))
        return lowest


@dataclass(frozen=True)
class ConvexHull:
    """The convex hull at the compositions of the candidates.

    Attributes:
        references: Phases that span the hull; if no references were given, the elements and the candidates with the
            lowest energies.
        starts: int64[n compositions + 1], first reference of each composition.
        own: Rows whose own phase is a reference that is left out, with the indices of the other references of their
            composition, lowest energy first.
        levels: Energies of the hulls at each composition.
        missing: For each element without a reference, the number of rows that contain it; largest number first.
        judged, unjudged: Numbers of rows with a usable energy: those that can be compared with the hull, and those with
            an element that has no reference.
        elements: The tabulated elemental energies that are used: their scheme, source and elements.
        without_compounds: Number of rows of compounds whose chemical system contains no compound among the references;
            their energy above hull is a formation energy.
        phases: Formulas, formation energies (eV/atom) and ids of references, for diagrams of the hull.
    """

    references: References
    starts: NDArray[np.int64]
    own: Mapping[int, list[int]]
    levels: Levels
    missing: Mapping[str, int]
    judged: int
    unjudged: int
    elements: Mapping[str, Any]
    without_compounds: int
    phases: Mapping[str, list[Any]]

    def name(self, composition: int) -> str:
        """Return the id of the lowest reference of a composition; empty if there is none."""
        start = int(self.starts[composition])
        return self.references.names[start] if start < int(self.starts[composition + 1]) else ""


@dataclass(frozen=True)
class _RowHulls:
    """The hull with which each row of a chunk is compared.

    Attributes:
        energy: float64[n], energy of the hull (eV/atom).
        own: bool[n], whether the row's own phase is left out.
        others: Other references of the composition by row, lowest energy first, for rows where `own` holds.
        lower: The lowest of the other references by row, where it is below the hull of all other compositions.
    """

    energy: NDArray[np.float64]
    own: NDArray[np.bool_]
    others: Mapping[int, list[int]]
    lower: Mapping[int, int]


def read_energies(
    scores: ScoredEnergies, compositions: Compositions, corrections: MP2020 | None, folder: Path, bar: ProgressReport
) -> CandidateEnergies:
    """Read compositions and corrected energies of all candidates into files.

    Args:
        scores: The dataset of the candidates.
        compositions: Updated with the compositions of the candidates.
        corrections: MP2020 corrections, for energies that need them.
        folder: Folder for the files.
        bar: Progress report.

    Raises:
        StoreError: The scores or their graph store are damaged, or no row has a usable energy.
    """
    size = len(scores)

    def column(name: str, dtype: str) -> Any:
        return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(size,))

    composition, energy = column("composition", "int64"), column("energy", "float64")
    correction, competes = column("correction", "float64"), column("competes", "bool")
    usable = 0
    for chunk in scores.energies(compositions, corrections):
        rows = slice(chunk.start, chunk.stop)
        composition[rows], energy[rows] = chunk.composition, chunk.energy
        correction[rows], competes[rows] = chunk.correction, chunk.competes
        usable += int(np.isfinite(chunk.energy).sum())
        bar.advance(chunk.stop - chunk.start)
    if not usable:
        cure = "check its labels and their run types" if scores.labelled else "score them with another model"
        raise StoreError(f"{scores.path}: none of the {size:,} structures has a usable energy; {cure}")
    return CandidateEnergies(scores, compositions, composition, energy, correction, competes)


def with_free_energies(candidates: CandidateEnergies, temperature: float, folder: Path) -> CandidateEnergies:
    """Return the free energies of all candidates, in files: their energies plus the free energies of their vibrations.

    Args:
        candidates: Energies of the candidates.
        temperature: Temperature, K.
        folder: Folder for the files.

    Raises:
        ConfigError: The dataset of the candidates has no free energies, or none at this temperature.
    """
    vibrations, size = VibrationalFreeEnergies(candidates.scores, temperature), len(candidates.energy)
    energy = np.lib.format.open_memmap(folder / "free_energy.npy", mode="w+", dtype="float64", shape=(size,))
    competes = np.lib.format.open_memmap(folder / "free_energy_competes.npy", mode="w+", dtype="bool", shape=(size,))
    for rows in candidates.chunks():
        span = slice(rows.start, rows.stop)
        energy[span] = rows.energy + vibrations.at(rows.start, rows.stop)
        competes[span] = rows.competes & np.isfinite(energy[span])
    return replace(candidates, energy=energy, competes=competes)


def find_hull(
    candidates: CandidateEnergies,
    references: References,
    bar: ProgressReport,
    *,
    lower_bound: bool = False,
    exclude_self: bool = False,
) -> ConvexHull:
    """Find the convex hull at the composition of every candidate.

    Args:
        candidates: Energies of the candidates.
        references: Reference phases.
        bar: Progress report.
        lower_bound: Whether there are no references besides elements, so that the candidates serve as references.
        exclude_self: Leave each candidate's own phase, recognised by its structure, out of its hull.

    Raises:
        ConfigError: pymatgen or scipy is needed and not installed, or a linear program failed.
        StoreError: The structures of the candidates cannot be read.
        SourceError: The structures of the references cannot be read.
    """
    compositions, counts, lowest = candidates.compositions, candidates.counts(), candidates.lowest()
    if lower_bound:
        references = _with_lowest_candidates(references, candidates, lowest)
    present = np.flatnonzero(counts)
    bar.expect(bar.total + len(present))
    own: dict[int, list[int]] = {}
    if exclude_self:
        phases = OwnPhases(candidates.scores, references, compositions)
        for rows in candidates.chunks():
            own |= phases.of(rows)
    needs_alone = np.zeros(len(compositions), dtype=bool)
    needs_alone[candidates.composition[list(own)]] = True
    levels = levels_of(compositions, present, references, lowest, needs_alone, bar.advance)
    elements, rows_by_element = _elements_of(references, compositions), _rows_by_element(compositions, counts)
    added = references.elements.get("elements", ())
    starts, usable, has_hull = references.starts(len(compositions)), candidates.usable(), np.isfinite(levels.hull)
    return ConvexHull(
        references,
        starts,
        own,
        levels,
        {symbol: count for symbol, count in rows_by_element.items() if symbol not in elements},
        int(usable[has_hull].sum()),
        int(usable[~has_hull].sum()),
        {**references.elements, "elements": [symbol for symbol in added if symbol in rows_by_element]},
        int(counts[levels.formation_only].sum()),
        _phases(references, starts, compositions, counts),
    )


def _phases(
    references: References, starts: NDArray[np.int64], compositions: Compositions, counts: NDArray[np.int64]
) -> dict[str, list[Any]]:
    """Return the lowest reference of each composition in the binary and ternary systems of the candidates.

    Systems with the most candidates come first. No further system is added once there are 2,000 phases.

    Args:
        references: The references.
        starts: int64[n compositions + 1], first reference of each composition.
        compositions: All compositions.
        counts: int64[n compositions], number of candidates of each composition.

    Returns:
        Formulas, formation energies (eV/atom) and ids, as in `ConvexHull.phases`.
    """
    lowest = lowest_of(references, len(compositions))
    hulls = Hulls(compositions, lowest)
    groups = compositions.by_system(np.flatnonzero(np.isfinite(lowest)).tolist())
    candidates: Counter[tuple[int, ...]] = Counter()
    for number in np.flatnonzero(counts).tolist():
        candidates[compositions.system(number)] += int(counts[number])
    found: dict[int, float] = {}
    for system, _ in sorted(candidates.items(), key=lambda item: (-item[1], item[0])):
        if len(system) not in (2, 3) or not all((element,) in groups for element in system):
            continue
        for part in hulls.subsystems(system):
            numbers = groups[part]
            elemental = hulls.elemental(part, compositions.fractions(numbers))
            found |= zip(numbers.tolist(), (lowest[numbers] - elemental).tolist(), strict=True)
        if len(found) >= _PHASES:
            break
    return {
        "formula": [compositions.formula(number) for number in found],
        "formation_energy_per_atom": [round(energy, 6) for energy in found.values()],
        "id": [references.names[int(starts[number])] for number in found],
    }


def write_distances(
    candidates: CandidateEnergies,
    hull: ConvexHull,
    model_hull: ConvexHull | None,
    free: tuple[CandidateEnergies, ConvexHull] | None,
    options: HullOptions,
    staging: Staging,
    bar: ProgressReport,
) -> list[PartManifest]:
    """Write a part with all arrays of the output for each chunk of rows, except for parts that already exist.

    Args:
        candidates: Energies of the candidates.
        hull: The hull of the references.
        model_hull: The hull of the references with all energies computed by the model, if there is one.
        free: Free energies of the candidates and their hull, if there is one.
        options: Options of the hull.
        staging: Folders of the run.
        bar: Progress report.

    Returns:
        Manifests of all parts, in order.
    """
    scores, done = candidates.scores, staging.manifests()
    end = suffix(relaxed=scores.relaxed)
    for number, rows in enumerate(candidates.chunks()):
        size = rows.stop - rows.start
        key = PartKey(number, 0, size)
        if key not in done:
            arrays = _hull_columns(scores, rows, candidates.compositions, hull, options)
            status = np.bincount(np.asarray(arrays["hull_status"]), minlength=len(HULL_STATUSES)).tolist()
            notes = {"status": status, "below": _below(arrays[f"energy_above_hull{end}"], rows)}
            if model_hull is not None:
                arrays |= _model_hull_columns(rows, candidates.compositions, model_hull, end)
                notes["below_model"] = _below(arrays[f"energy_above_model_hull{end}"], rows)
            if free is not None:
                own = free[0].rows(rows.start, rows.stop)
                arrays |= _free_energy_columns(own, candidates.compositions, free[1], end)
                notes["below_free"] = _below(arrays[f"free_energy_above_hull{end}"], own)
                notes["with_free_energy"] = int(np.isfinite(own.energy).sum())
            for spec in kept_arrays(scores.specs):
                values = scores.column(spec.name, rows.start, rows.stop)
                arrays[spec.name] = values.tolist() if spec.dtype == TEXT else values
            done[key] = write_part(staging.parts, key, arrays, {"read": size}, notes)
        bar.advance(size)
    return [done[key] for key in sorted(done)]


def _below(above_hull: PartArray, rows: EnergyRows) -> int:
    """Return the number of rows below a hull, without rows whose energy cannot be part of a hull."""
    return int((np.asarray(above_hull)[rows.competes] < 0).sum())


def _competing_energy(rows: EnergyRows) -> NDArray[np.float64]:
    """Return the energies that may be part of a hull: float64[n], eV/atom; NaN elsewhere."""
    return np.where(rows.competes, rows.energy, np.nan)


def _with_lowest_candidates(
    elements: References, candidates: CandidateEnergies, lowest: NDArray[np.float64]
) -> References:
    """Return the references of elements, with candidates as references of all other compositions.

    Each composition is represented by its lowest energy, and by the lowest energy of each ensemble member. If several
    candidates have the lowest energy, the name is the id that sorts first.
    """
    gathered = elements.gathered()
    known = set(gathered.composition)
    n_members = candidates.scores.n_members
    member_lowest = np.full((len(lowest), n_members), np.nan)
    names: dict[int, str] = {}
    for rows in candidates.chunks():
        members = candidates.scores.member_energies(rows)
        if members is not None:
            np.fmin.at(member_lowest, rows.composition, np.where(rows.competes[:, None], members, np.nan))
        wanted = np.flatnonzero(_competing_energy(rows) == lowest[rows.composition])
        ids = candidates.scores.ids(rows) if len(wanted) else np.array([], dtype=object)
        for row in wanted.tolist():
            number = int(rows.composition[row])
            names[number] = min(names.get(number, ids[row]), ids[row])
    for number, name in sorted(names.items()):
        if number not in known:
            gathered.add(number, float(lowest[number]), name, member_lowest[number] if n_members else None)
    return References.of(gathered, n_members, (), elements.elements)


def _rows_by_element(compositions: Compositions, counts: NDArray[np.int64]) -> dict[str, int]:
    """Return the number of rows that contain each element, by symbol, largest number first."""
    found: Counter[str] = Counter()
    for number in np.flatnonzero(counts).tolist():
        for symbol in compositions.symbols(number):
            found[symbol] += int(counts[number])
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _elements_of(references: References, compositions: Compositions) -> set[str]:
    """Return the symbols of the elements that have a reference."""
    numbers = set(references.composition.tolist())
    return {compositions.symbols(number)[0] for number in numbers if len(compositions.system(number)) == 1}


def _hull_columns(
    scores: ScoredEnergies, rows: EnergyRows, compositions: Compositions, hull: ConvexHull, options: HullOptions
) -> dict[str, PartArray]:
    """Return the columns that the hull adds to some rows."""
    composition, energy, levels = rows.composition, rows.energy, hull.levels
    row_hulls = _row_hulls(rows, hull)
    above, joint = _distance(energy, row_hulls.energy), energy - levels.joint[composition]
    columns = {
        "corrected_energy_per_atom": energy,
        "formation_energy_per_atom": energy - levels.elemental[composition],
        "energy_above_hull": above,
        "energy_above_joint_hull": np.where((joint < 0) & (joint > -_ROUNDING), 0.0, joint),
    }
    members = scores.member_energies(rows)
    if members is not None:
        distances = _member_distances(members, composition, row_hulls, hull)
        std = distances.std(axis=1, ddof=1) if distances.shape[1] > 1 else np.zeros(len(distances))
        columns |= {"energy_above_hull_std": std, **_probabilities(distances.mean(axis=1), std, options)}
    elif options.error is not None:
        columns |= _probabilities(above, np.full(len(above), options.error), options)
    end = suffix(relaxed=scores.relaxed)
    status = np.where(np.isnan(energy), NO_ENERGY, np.where(np.isnan(above), MISSING_REFERENCE, OK))
    return {
        **{f"{name}{end}": values for name, values in columns.items()},
        "correction_per_atom": rows.correction,
        "hull_status": status.astype(np.uint8),
        "decomposition": _decompositions(composition, row_hulls, status, compositions, hull),
    }


def _model_hull_columns(
    rows: EnergyRows, compositions: Compositions, hull: ConvexHull, end: str
) -> dict[str, PartArray]:
    """Return the columns that the hull of model energies adds to some rows; names of energies end in `end`."""
    row_hulls = _row_hulls(rows, hull)
    status = np.where(np.isnan(row_hulls.energy), MISSING_REFERENCE, OK)
    return {
        f"energy_above_model_hull{end}": _distance(rows.energy, row_hulls.energy),
        "model_decomposition": _decompositions(rows.composition, row_hulls, status, compositions, hull),
    }


def _free_energy_columns(
    rows: EnergyRows, compositions: Compositions, hull: ConvexHull, end: str
) -> dict[str, PartArray]:
    """Return the columns that the hull of free energies adds to some rows; names of energies end in `end`.

    Args:
        rows: Free energies.
        compositions: All compositions.
        hull: Hull of the free energies of the references.
        end: End of the names.
    """
    row_hulls = _row_hulls(rows, hull)
    status = np.where(np.isnan(row_hulls.energy), MISSING_REFERENCE, OK)
    return {
        f"free_energy_per_atom{end}": rows.energy,
        f"formation_free_energy_per_atom{end}": rows.energy - hull.levels.elemental[rows.composition],
        f"free_energy_above_hull{end}": _distance(rows.energy, row_hulls.energy),
        "free_energy_decomposition": _decompositions(rows.composition, row_hulls, status, compositions, hull),
    }


def _distance(energy: NDArray[np.float64], hull: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return energies above a hull, without rounding errors around zero: float64[n], eV/atom."""
    above = energy - hull
    return np.where(np.abs(above) < _ZERO, 0.0, above)


def _row_hulls(rows: EnergyRows, hull: ConvexHull) -> _RowHulls:
    """Return the hull with which each row is compared."""
    others = {row - rows.start: hull.own[row] for row in range(rows.start, rows.stop) if row in hull.own}
    own = np.zeros(rows.stop - rows.start, dtype=bool)
    own[list(others)] = True
    energy = np.where(own, hull.levels.alone[rows.composition], hull.levels.hull[rows.composition])
    lowest = {row: places[0] for row, places in others.items() if places}
    lower = {row: place for row, place in lowest.items() if hull.references.energy[place] < energy[row]}
    for row, place in lower.items():
        energy[row] = hull.references.energy[place]
    return _RowHulls(energy, own, others, lower)


def _member_distances(
    members: NDArray[np.float64], composition: NDArray[np.int64], row_hulls: _RowHulls, hull: ConvexHull
) -> NDArray[np.float64]:
    """Return each member's energy above its own hull, or above one hull for all: float64[n, members], eV/atom."""
    levels, energies = hull.levels, hull.references.members
    if levels.members is None or levels.members_alone is None or energies is None:
        return members - row_hulls.energy[:, None]
    hulls = np.where(row_hulls.own[:, None], levels.members_alone[composition], levels.members[composition])
    for row, places in row_hulls.others.items():
        if places:
            hulls[row] = np.minimum(hulls[row], energies[places].min(axis=0))
    return members - hulls


def _probabilities(
    above: NDArray[np.float64], std: NDArray[np.float64], options: HullOptions
) -> dict[str, NDArray[np.float64]]:
    """Return the probabilities that rows are below the hull, or near it, for normally distributed errors.

    Args:
        above: float64[n], energies above hull (eV/atom).
        std: float64[n], their standard deviations (eV/atom).
        options: Options of the hull, which define how close to the hull counts as near.
    """
    found = {}
    for name, level in (("probability_below_hull", 0.0), ("probability_near_hull", options.within)):
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(std > 0, (level - above) / std, np.where(above < level, np.inf, -np.inf))
        z = np.where(np.isnan(above), np.nan, z)
        found[name] = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z.tolist()])
    return found


def _decompositions(
    composition: NDArray[np.int64],
    row_hulls: _RowHulls,
    status: NDArray[np.int64],
    compositions: Compositions,
    hull: ConvexHull,
) -> list[str]:
    """Return the decomposition products of each row as text; empty if a reference is missing."""
    known: dict[tuple[int, bool], str] = {}
    out = []
    for row, (number, own) in enumerate(zip(composition.tolist(), row_hulls.own.tolist(), strict=True)):
        if status[row] == MISSING_REFERENCE:
            out.append("")
        elif row in row_hulls.lower:
            out.append(_phase(1.0, compositions.formula(number), hull.references.names[row_hulls.lower[row]]))
        else:
            if (number, own) not in known:
                known[number, own] = _decomposition(number, compositions, hull, alone=own)
            out.append(known[number, own])
    return out


def _decomposition(number: int, compositions: Compositions, hull: ConvexHull, *, alone: bool) -> str:
    """Return the decomposition products at a composition, as text."""
    levels = hull.levels
    products = (levels.products_alone.of(number) if alone else []) or levels.products.of(number)
    products.sort(key=lambda product: (-round(product[1], 9), compositions.formula(product[0])))
    phases = [_phase(amount, compositions.formula(product), hull.name(product)) for product, amount in products]
    return " + ".join(phases)


def _phase(amount: float, formula: str, name: str) -> str:
    text = f"{amount:.4f}".rstrip("0").rstrip(".")
    return f"{text} {formula} ({name})" if name else f"{text} {formula}"
