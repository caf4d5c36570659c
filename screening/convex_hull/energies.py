"""Energies of a scores dataset as a hull needs them: by composition, with the corrections of their energy scheme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.energy_schemes import CORRECTED, NO_DISPERSION, OWN, UNCORRECTED, dispersion_of
from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import GRAPH_SCHEMA, ArraySpec
from ..chemistry.composition import Compositions
from ..chemistry.functionals import GGA, GGA_U
from ..dataset.labels import LABELLED, label_arrays
from ..dataset.reader import ScoresReader
from ..dataset.scores import RELIABLE_STATUSES, USABLE_STATUSES
from .mp2020 import MP2020, OXIDE_TYPES, SULFIDE_TYPES, anion_types

# Kinds of datasets of relaxed structures; in a dataset of properties, each row has the status of its relaxation.
RELAXED = ("relaxed", "properties")
# Names of the column that states the run type of a labelled structure.
_RUN_TYPES = ("run_type", "parameters.run_type", "data.run_type")
# Maximum number of structures whose edges are in memory at once.
_BLOCK = 512
_ANION_KINDS = len(OXIDE_TYPES) * len(SULFIDE_TYPES)
# Columns of a dataset of properties with phonons.
_FREE_ENERGY, _ENTROPY, _PHONON_STATUS = "vibrational_free_energies", "vibrational_entropies", "phonons_status"
# One J/mol/K in eV/K (CODATA 2018: the inverse of the product of the elementary charge and the Avogadro constant).
_J_PER_MOL = 1 / 96485.33212
_NAMED = 5


def basis(scheme: str) -> str:
    """Return the scheme in which energies are compared; uncorrected Materials Project energies are corrected first."""
    return CORRECTED if scheme == UNCORRECTED else scheme


@dataclass(frozen=True)
class EnergyRows:
    """Energies of consecutive rows of a scores dataset.

    Attributes:
        start: First row in the dataset.
        stop: End of the rows in the dataset, exclusive.
        composition: int64[n], numbers of the compositions (see `Compositions`).
        energy: float64[n], corrected energies (eV/atom); NaN where the energy cannot be used.
        correction: float64[n], corrections included in the energies (eV/atom); NaN where the energy cannot be used.
        competes: bool[n], whether the energy may be part of a hull.
    """

    start: int
    stop: int
    composition: NDArray[np.int64]
    energy: NDArray[np.float64]
    correction: NDArray[np.float64]
    competes: NDArray[np.bool_]


class ScoredEnergies(ScoresReader):
    """A scores dataset with energies, or a graph store with energies as labels.

    Args:
        path: Path or URL of the dataset of a screen, relaxation or hull; or of the graph store.
        store: Path of the graph store, if it is not where the dataset records it.
        labelled: The graph store, if the energies are its labels.
        labels: Energy scheme of these labels.

    Attributes:
        scheme: Energy scheme of the model or, for labels, of the labels.
        model: Hash of the model's weights; empty if the dataset does not record one.
        basis: Hash of the weights that define the zero of energy of the scheme ``own``: the model's own weights or, if
            the model was distilled, its teacher's.
        uncorrectable: Number of labelled energies that MP2020 rejects, by reason, among the rows that `energies` has
            read.
        relaxed: Whether the structures were relaxed; true for labels, which are assumed to come from relaxed
            structures.

    Raises:
        StoreError: The dataset is missing, unfinished or not a scores dataset, or has no energies.
    """

    def __init__(
        self, path: str | Path, store: str | Path | None = None, *, labelled: GraphStore | None = None, labels: str = ""
    ) -> None:
        self._labelled, self._scheme_of_labels = labelled, labels
        if labelled is not None:
            self._schema = GRAPH_SCHEMA
            vars(self)["graphs"] = labelled  # so that the property does not open it again
        super().__init__(path, store)
        if "energy" not in self.specs:
            raise StoreError(f"{path} has no energies; use the scores of a model that predicts energies")
        model = self.attrs.get("model", {})
        self.scheme = str(model.get("energy_scheme", OWN))
        self.model = str(model.get("weights_sha256") or model.get("sha256") or "")
        self.basis = str(model.get("energy_basis") or self.model)
        self.uncorrectable: Counter[str] = Counter()
        self.relaxed = self.attrs.get("kind") in {*RELAXED, LABELLED}
        meanings = self.meanings(self.energy_status)
        self._usable, self._reliable = (
            np.array([value for word, value in meanings.items() if word in words], np.uint8)
            for words in (USABLE_STATUSES, RELIABLE_STATUSES)
        )

    def _open(self) -> tuple[Mapping[str, Any], dict[str, Any], dict[str, ArraySpec]]:
        return super()._open() if self._labelled is None else label_arrays(self._labelled, self._scheme_of_labels)

    @property
    def labelled(self) -> bool:
        """Whether the energies are the labels of a graph store."""
        return self._labelled is not None

    @property
    def n_members(self) -> int:
        """Number of ensemble members whose own energies the dataset has."""
        spec = self.specs.get("energy_members")
        return 0 if spec is None else spec.inner[0]

    def energies(self, compositions: Compositions, corrections: MP2020 | None) -> Iterator[EnergyRows]:
        """Read the energies of all rows, chunk by chunk.

        Args:
            compositions: Updated with the compositions of the rows.
            corrections: MP2020 corrections; they are added to energies of scheme ``mp-uncorrected`` only.

        Raises:
            StoreError: The dataset is damaged, or its graph store was replaced by another one.
        """
        needed = corrections if self.scheme == UNCORRECTED else None
        self.uncorrectable.clear()
        for start, stop in self.chunks():
            yield self._read(start, stop, compositions, needed)

    def ids(self, rows: EnergyRows) -> NDArray[np.object_]:
        """Return the ids of some rows: object[n]."""
        return np.array(self.column("structure_id", rows.start, rows.stop).tolist(), dtype=object)

    def not_competing(self) -> dict[str, int]:
        """Return the number of rows, by status, that are compared with a hull but are not part of one."""
        meanings = self.meanings(self.energy_status)
        counts = sum(np.bincount(self.column(self.energy_status, *span), minlength=256) for span in self.chunks())
        words = sorted(USABLE_STATUSES - RELIABLE_STATUSES)
        found = {word: int(np.asarray(counts)[meanings[word]]) for word in words if word in meanings}
        return {word: count for word, count in found.items() if count}

    def member_energies(self, rows: EnergyRows) -> NDArray[np.float64] | None:
        """Return corrected energies by ensemble member: float64[n, members], eV/atom; None without an ensemble."""
        if not self.n_members:
            return None
        n_atoms = self.column("n_atoms", rows.start, rows.stop)[:, None]
        energies = self.column("energy_members", rows.start, rows.stop) / n_atoms
        return np.asarray(energies + rows.correction[:, None])

    def _read(self, start: int, stop: int, compositions: Compositions, corrections: MP2020 | None) -> EnergyRows:
        formulas = self.column("formula", start, stop).tolist()
        numbers = np.array([compositions.of_formula(text) for text in formulas], dtype=np.int64)
        n_atoms = self.column("n_atoms", start, stop)
        energy = self.column("energy", start, stop) / n_atoms
        status = self.column(self.energy_status, start, stop)
        usable = np.isin(status, self._usable) & np.isfinite(energy)
        reasons = self._rejections(numbers, start, stop, compositions, corrections)
        self.uncorrectable.update(reason for reason in reasons[usable].tolist() if reason)
        usable &= reasons == ""
        correction = np.zeros(len(numbers))
        if corrections is not None:
            kinds = self._anion_kinds(start, numbers, usable, n_atoms, compositions)
            correction = _corrections(numbers, kinds, compositions, corrections)
        energy = np.where(usable, energy + correction, np.nan)
        correction[~usable] = np.nan
        return EnergyRows(start, stop, numbers, energy, correction, usable & np.isin(status, self._reliable))

    def _rejections(
        self,
        numbers: NDArray[np.int64],
        start: int,
        stop: int,
        compositions: Compositions,
        corrections: MP2020 | None,
    ) -> NDArray[np.object_]:
        """Return why rows cannot be corrected, object[n]: their run type as a label; empty for rows that can be."""
        column = next((name for name in _RUN_TYPES if name in self.specs), None)
        if corrections is None or column is None or not self.labelled:
            return np.full(len(numbers), "", dtype=object)
        expected = [GGA_U if corrections.hubbards(compositions.symbols(number)) else GGA for number in numbers.tolist()]
        given = [str(one).strip() for one in self.column(column, start, stop).tolist()]
        reasons = [
            "" if one == other else f"run type {one} instead of {other}" if one else "no run type"
            for one, other in zip(given, expected, strict=True)
        ]
        return np.array(reasons, dtype=object)

    def _anion_kinds(
        self,
        start: int,
        numbers: NDArray[np.int64],
        usable: NDArray[np.bool_],
        n_atoms: NDArray[np.int32],
        compositions: Compositions,
    ) -> NDArray[np.int64]:
        """Return a code of the oxide and sulfide type of each row: int64[n]; 0 for all but compounds of O or S."""
        kinds = np.zeros(len(numbers), dtype=np.int64)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        needed = np.array([_needs_structure(compositions.symbols(number)) for number in distinct.tolist()], dtype=bool)
        rows = np.flatnonzero(needed[inverse] & usable)
        for first in range(0, len(numbers), _BLOCK):
            nearby = rows[(rows >= first) & (rows < first + _BLOCK)]
            if len(nearby):
                kinds[nearby] = _anion_codes(self._block(start, nearby, n_atoms))
        return kinds

    def _block(self, start: int, rows: NDArray[np.int64], n_atoms: NDArray[np.int32]) -> GraphBlock:
        """Return the graphs of some rows, which are counted from `start` and close together."""
        try:
            graphs = self.graphs
        except StoreError as error:
            raise StoreError(
                f"MP2020 corrections of oxides and sulfides need the crystal structures, which cannot be read: {error}"
            ) from error
        first, last = int(rows[0]), int(rows[-1]) + 1
        block = graphs.block(start + first, start + last, labels=False).take(rows - first)
        self.check_atoms(block.n_atoms, n_atoms[rows])
        return block


def _needs_structure(symbols: tuple[str, ...]) -> bool:
    return len(symbols) > 1 and ("O" in symbols or "S" in symbols)


def _anion_codes(block: GraphBlock) -> NDArray[np.int64]:
    """Return the indices of each structure's oxide and sulfide type, combined into one number: int64[n]."""
    oxides, sulfides = anion_types(block)
    codes = [
        OXIDE_TYPES.index(oxide) * len(SULFIDE_TYPES) + SULFIDE_TYPES.index(sulfide)
        for oxide, sulfide in zip(oxides, sulfides, strict=True)
    ]
    return np.array(codes, dtype=np.int64)


def _corrections(
    numbers: NDArray[np.int64], kinds: NDArray[np.int64], compositions: Compositions, corrections: MP2020
) -> NDArray[np.float64]:
    """Return corrections by composition and code of the anion types: float64[n], eV/atom."""
    codes, inverse = np.unique(numbers * _ANION_KINDS + kinds, return_inverse=True)
    values = []
    for code in codes.tolist():
        number, kind = divmod(code, _ANION_KINDS)
        oxide, sulfide = OXIDE_TYPES[kind // len(SULFIDE_TYPES)], SULFIDE_TYPES[kind % len(SULFIDE_TYPES)]
        values.append(corrections.per_atom(compositions.symbols(number), compositions.counts(number), oxide, sulfide))
    return np.array(values)[inverse]


def check_same_basis(candidates: str, other: str, where: str) -> None:
    """Check that the energies of references can be compared with the energies of the candidates.

    Args:
        candidates: Energy scheme of the candidates.
        other: Energy scheme of the references.
        where: File of the references.

    Raises:
        ConfigError: The energy schemes are incompatible.
    """
    if basis(candidates) != basis(other):
        raise ConfigError(
            f"{where}: the energies follow the scheme {other!r}, which cannot be compared with the candidates' scheme "
            f"{candidates!r}; use references of the candidates' scheme"
        )


def check_without_dispersion(candidates: str, where: str) -> None:
    """Reject references other than datasets, which cannot include the dispersion correction of the candidates.

    Args:
        candidates: Energy scheme of the candidates.
        where: File of the references.

    Raises:
        ConfigError: The energies of the candidates include a dispersion correction.
    """
    dispersion = dispersion_of(candidates)
    if dispersion != NO_DISPERSION:
        raise ConfigError(
            f"{where}: these references include no dispersion, but the energies of the candidates do ({candidates}); "
            f"relax the references with the same model and `--dispersion {dispersion}`, and use that dataset (`rank "
            "--relax-references` does so)"
        )


class VibrationalFreeEnergies:
    """Helmholtz free energies of the vibrations of the crystals of a dataset, at one temperature.

    They are interpolated between the temperatures of the dataset by cubic polynomials that also have the right slope,
    which is minus the entropy. With steps of 100 K, the error is below 0.05 meV/atom above 100 K, and below 1 meV/atom
    down to 0 K (Einstein and Debye crystals from 0.5 to 16 THz).

    Args:
        scores: Dataset of `compute_properties` with phonons, or one made from it.
        temperature: Temperature, K.

    Raises:
        ConfigError: The dataset has no free energies, or none at this temperature.
    """

    def __init__(self, scores: ScoresReader, temperature: float) -> None:
        self._scores, self._temperature = scores, temperature
        absent = [name for name in (_FREE_ENERGY, _ENTROPY, _PHONON_STATUS) if name not in scores.specs]
        if absent:
            raise ConfigError(
                f"{scores.path} has no vibrational free energies; compute them with `equiscreen properties "
                f"{scores.path} --what phonons`, and use that dataset"
            )
        self._temperatures = np.array(scores.specs[_FREE_ENERGY].attrs["temperatures"], dtype=np.float64)
        low, high = self._temperatures.min(), self._temperatures.max()
        if not low <= temperature <= high:
            raise ConfigError(
                f"{scores.path} has free energies from {low:g} to {high:g} K, not at {temperature:g} K; choose a "
                "temperature in this range"
            )

    def at(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return the free energies of some rows, float64[n], eV/atom; NaN without phonons or with imaginary modes."""
        energies = np.asarray(self._scores.column(_FREE_ENERGY, start, stop), dtype=np.float64)
        slopes = -np.asarray(self._scores.column(_ENTROPY, start, stop), dtype=np.float64) * _J_PER_MOL
        found = interpolated(self._temperatures, energies, slopes, self._temperature)
        is_ok = self._scores.column(_PHONON_STATUS, start, stop) == self._scores.meanings(_PHONON_STATUS)["ok"]
        return np.where(is_ok, found, np.nan)

    def check_references(self, names: Sequence[str], rows: NDArray[np.int64]) -> None:
        """Refuse references without a free energy, which would be missing from the hull.

        Args:
            names: Ids of the references without a free energy.
            rows: int64[n], their rows in the dataset.

        Raises:
            ConfigError: There are such references.
        """
        if len(rows) == 0:
            return
        words = {value: word.replace("_", " ") for word, value in self._scores.meanings(_PHONON_STATUS).items()}
        told = [
            f"{name} ({words[int(value)]})"
            for name, value in zip(
                names[:_NAMED], self._scores.rows(_PHONON_STATUS, rows[:_NAMED]).tolist(), strict=True
            )
        ]
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        raise ConfigError(
            f"{self._scores.path}: these references have no vibrational free energy: {', '.join(told)}{more}; leave "
            f"them out (`equiscreen select {self._scores.path} --by n_atoms --where \"phonons_status == 'ok'\" --out "
            "STABLE`), or follow their imaginary modes (`equiscreen properties --follow-modes`)"
        )


def interpolated(
    points: NDArray[np.float64], values: NDArray[np.float64], slopes: NDArray[np.float64], place: float
) -> NDArray[np.float64]:
    """Interpolate with cubic polynomials that have given values and slopes: float64[n]; NaN for rows with a NaN.

    Args:
        points: float64[m], in any order.
        values: float64[n, m].
        slopes: Derivatives: float64[n, m].
        place: Where to interpolate, between the smallest and the largest point.
    """
    from scipy.interpolate import CubicHermiteSpline  # noqa: PLC0415 - an extra

    if len(points) == 1:
        return values[:, 0]
    order = np.argsort(points)
    known = np.isfinite(values).all(axis=1) & np.isfinite(slopes).all(axis=1)
    found = np.full(len(values), np.nan)
    found[known] = CubicHermiteSpline(points[order], values[known][:, order], slopes[known][:, order], axis=1)(place)
    return found
