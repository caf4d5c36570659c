"""Energies of a scores dataset as a hull takes them: by composition, corrected where their scheme asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.store.graph_store import GraphStore, open_root
from ..chemistry.composition import Compositions
from ..dataset.reader import place_of_graphs
from ..dataset.scores import SCORES_SCHEMA
from .mp2020 import MP2020, OXIDE_TYPES, SULFIDE_TYPES, anion_types

UNCORRECTED, CORRECTED = "mp-uncorrected", "mp2020-corrected"
SCHEMES = (UNCORRECTED, CORRECTED, "omat24", "matpes-pbe", "r2scan", "own")
RELAXED = "relaxed"
# Rows with energies that count: an energy that had not converged is one that the structure has, if not its lowest.
_COMPETING = frozenset({"ok", "not_converged"})
# Those with energies that are measured, but may be far too low to measure others by.
_USABLE = _COMPETING | {"extrapolating"}
CHUNK_ROWS = 32_768
# Structures whose edges are in memory at once.
_BLOCK = 512
_KINDS = len(OXIDE_TYPES) * len(SULFIDE_TYPES)


def basis(scheme: str) -> str:
    """What energies of a scheme are when they are compared: those of the Materials Project are then corrected."""
    return CORRECTED if scheme == UNCORRECTED else scheme


@dataclass(frozen=True)
class EnergyRows:
    """Some rows.

    Attributes:
        start, stop: Of the dataset.
        composition: int64[n].
        energy: float64[n], corrected, eV/atom; NaN where there is none to be used.
        competes: bool[n], whether the energy may be part of a hull.
        correction: float64[n], what of it is correction.
        members: float64[n, members], likewise corrected, or None.
    """

    start: int
    stop: int
    composition: NDArray[np.int64]
    energy: NDArray[np.float64]
    competes: NDArray[np.bool_]
    correction: NDArray[np.float64]
    members: NDArray[np.float64] | None


class ScoredEnergies:
    """The rows of a scores dataset.

    Args:
        path: A screen, a relaxation or a hull.
        store: The graph store, if it is not where the dataset says.

    Attributes:
        path: As given.
        attrs: Of the dataset.
        scheme: Of its energies.
        relaxed: Whether they are of relaxed structures.

    Raises:
        StoreError: No scores, or without energies.
    """

    def __init__(self, path: str | Path, store: str | Path | None = None) -> None:
        self.path = path
        self.root = open_root(path, SCORES_SCHEMA)
        self.attrs: Mapping[str, Any] = dict(self.root.attrs)
        self.arrays = dict(self.root.arrays())
        absent = [
            name for name in ("energy", "formula", "n_atoms", "status", "structure_id") if name not in self.arrays
        ]
        if absent:
            raise StoreError(f"{path}: has no {', '.join(absent)}; a hull needs a screen with energies")
        model = self.attrs.get("model", {})
        self.scheme = str(model.get("energy_scheme", "own"))
        self.model = str(model.get("weights_sha256") or model.get("sha256") or "")
        self.relaxed = self.attrs.get("kind") == RELAXED
        self._given_store = store
        self._graphs: GraphStore | None = None
        meanings = str(self.arrays["status"].attrs.get("flag_meanings", "ok")).split()
        values = np.asarray(self.arrays["status"].attrs.get("flag_values", range(len(meanings))))
        self._usable, self._competing = (
            np.array([value for value, meaning in zip(values, meanings, strict=True) if meaning in some], np.uint8)
            for some in (_USABLE, _COMPETING)
        )

    def __len__(self) -> int:
        return int(self.arrays["energy"].shape[0])

    @property
    def n_members(self) -> int:
        """Members of the ensemble whose energies are there, each by itself."""
        array = self.arrays.get("energy_members")
        return 0 if array is None else int(array.shape[1])

    def column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of an array.

        Raises:
            StoreError: Damaged.
        """
        try:
            return np.asarray(self.arrays[name][start:stop])
        except Exception as error:  # a damaged chunk fails anywhere in its codecs
            raise StoreError(f"{self.path}: array {name!r} cannot be read ({type(error).__name__})") from error

    def chunks(self, compositions: Compositions, scheme: MP2020 | None) -> Iterator[EnergyRows]:
        """All rows, some at a time.

        Args:
            compositions: Takes up those of the rows.
            scheme: The corrections, for energies that need them.

        Raises:
            StoreError: Damaged, or not of the graph store that it names.
        """
        for start in range(0, len(self), CHUNK_ROWS):
            yield self._rows(start, min(start + CHUNK_ROWS, len(self)), compositions, scheme)

    def _rows(self, start: int, stop: int, compositions: Compositions, scheme: MP2020 | None) -> EnergyRows:
        formulas = self.column("formula", start, stop).tolist()
        numbers = np.array([compositions.of_formula(text) for text in formulas], dtype=np.int64)
        n_atoms = self.column("n_atoms", start, stop)
        energy = self.column("energy", start, stop) / n_atoms
        status = self.column("status", start, stop)
        usable = np.isin(status, self._usable) & np.isfinite(energy)
        competes = usable & np.isin(status, self._competing)
        correction = np.zeros(len(numbers))
        if scheme is not None:
            correction = self._corrections(start, numbers, usable, n_atoms, compositions, scheme)
        energy = np.where(usable, energy + correction, np.nan)
        correction[~usable] = np.nan
        members = None
        if self.n_members:
            members = self.column("energy_members", start, stop) / n_atoms[:, None] + correction[:, None]
        return EnergyRows(start, stop, numbers, energy, competes, correction, members)

    def _corrections(
        self,
        start: int,
        numbers: NDArray[np.int64],
        usable: NDArray[np.bool_],
        n_atoms: NDArray[np.int32],
        compositions: Compositions,
        scheme: MP2020,
    ) -> NDArray[np.float64]:
        """float64[n], eV/atom."""
        kinds = np.zeros(len(numbers), dtype=np.int64)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        asks = np.array([_needs_structure(compositions.symbols(number)) for number in distinct.tolist()], dtype=bool)
        rows = np.flatnonzero(asks[inverse] & usable)
        for first in range(0, len(numbers), _BLOCK):
            some = rows[(rows >= first) & (rows < first + _BLOCK)]
            if len(some):
                kinds[some] = self._kinds(start, some, n_atoms)
        codes, inverse = np.unique(numbers * _KINDS + kinds, return_inverse=True)
        values = []
        for code in codes.tolist():
            number, kind = divmod(code, _KINDS)
            oxide, sulfide = OXIDE_TYPES[kind // len(SULFIDE_TYPES)], SULFIDE_TYPES[kind % len(SULFIDE_TYPES)]
            values.append(scheme.per_atom(compositions.symbols(number), compositions.counts(number), oxide, sulfide))
        return np.array(values)[inverse]

    def _kinds(self, start: int, rows: NDArray[np.int64], n_atoms: NDArray[np.int32]) -> NDArray[np.int64]:
        """Kind of oxide and of sulfide of rows that stand close together, as one number."""
        graphs = self.graphs()
        first, last = int(rows[0]), int(rows[-1]) + 1
        block = graphs.block(start + first, start + last, labels=False).take(rows - first)
        if not np.array_equal(block.n_atoms, n_atoms[rows]):
            raise StoreError(f"{graphs.path}: its structures are not those of {self.path}; say --store")
        oxides, sulfides = anion_types(block)
        codes = [
            OXIDE_TYPES.index(oxide) * len(SULFIDE_TYPES) + SULFIDE_TYPES.index(sulfide)
            for oxide, sulfide in zip(oxides, sulfides, strict=True)
        ]
        return np.array(codes, dtype=np.int64)

    def graphs(self) -> GraphStore:
        """The graph store with the structures.

        Raises:
            StoreError: It is not there, or has changed.
        """
        if self._graphs is None:
            place = place_of_graphs(self.path, self.attrs, self._given_store)
            try:
                graphs = GraphStore(place)
            except StoreError as error:
                raise StoreError(
                    f"{self.path}: corrections of oxides and sulfides need its structures; say where they are with "
                    f"--store ({error})"
                ) from error
            if graphs.store_hash != self.attrs.get("graph_store", {}).get("store_hash") or len(graphs) < len(self):
                raise StoreError(f"{place}: is not the store that {self.path} was made of, or has changed")
            self._graphs = graphs
        return self._graphs


def _needs_structure(symbols: tuple[str, ...]) -> bool:
    return len(symbols) > 1 and ("O" in symbols or "S" in symbols)


def same_basis(candidates: str, other: str, where: str) -> None:
    """Refuse energies that cannot be compared.

    Args:
        candidates: Scheme of the candidates.
        other: Scheme of the references.
        where: Their file.

    Raises:
        ConfigError: They are of schemes that do not mix.
    """
    if basis(candidates) != basis(other):
        raise ConfigError(
            f"{where}: its energies are {other!r}, those of the candidates {candidates!r}; they cannot be "
            "compared: take references of the candidates' scheme"
        )
