"""Generation of candidates, which are written to a parquet file."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..runs.progress import ProgressReport
from ..runs.staging import PARQUET, check_file
from ..structures.structure import Structure
from .prototypes import load_prototypes
from .substitution import MAX_STRAIN, MIN_PROBABILITY, RATTLE, Candidate, draw_candidates, plan_substitutions

ROWS_PER_GROUP = 10_000
_VECTORS = pa.list_(pa.list_(pa.float64()))
# Column names follow OPTIMADE and the LeMat-Bulk data set.
CANDIDATE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lattice_vectors", _VECTORS),
        ("cartesian_site_positions", _VECTORS),
        ("species_at_sites", pa.list_(pa.string())),
        ("prototype", pa.string()),
        ("substitution_probability", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """Summary of a run of `generate`.

    Attributes:
        path: The parquet file.
        written: Number of candidates in the file.
        read: Number of prototypes read.
        usable: Number of prototypes with likely substitutions.
        substitutions: Number of distinct substitutions; further candidates are strained and rattled copies.
        setup_seconds: Time before the first candidate, for prototypes, oxidation states and probabilities.
        seconds: Time from the first candidate to the end.
    """

    path: Path
    written: int
    read: int
    usable: int
    substitutions: int
    setup_seconds: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.written:,} candidates, drawn from {self.substitutions:,} likely substitutions in "
            f"{self.usable:,} of {self.read:,} prototypes; set up in {self.setup_seconds:.1f} s, then "
            f"{self.seconds:.1f} s, {self.written / max(self.seconds, 1e-9):,.0f} candidates/s"
        )


def generate(
    prototypes: Sequence[str | Path],
    out: str | Path,
    count: int,
    *,
    seed: int = 0,
    elements: Collection[str] | None = None,
    max_atoms: int | None = None,
    min_probability: float = MIN_PROBABILITY,
    overwrite: bool = False,
    progress: bool | None = None,
) -> GenerateReport:
    """Generate `count` candidates and write them to a parquet file, like the command ``equiscreen generate``.

    Args:
        prototypes: Paths of graph stores; see `load_prototypes`.
        out: Path of the file; see `write_candidates`.
        count: Number of candidates; see `substitute`.
        seed: Random seed, not negative; the same prototypes, seed and settings give the same candidates.
        elements: Symbols of the elements that candidates may contain; None allows all.
        max_atoms: Maximum number of atoms in a cell; None sets no limit.
        min_probability: Minimum probability of a substitution.
        overwrite: Replace an existing file.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Raises:
        SourceError: As for `load_prototypes` and `substitute`.
        StoreError: As for `load_prototypes`.
        ConfigError: As for `substitute`.
        OutputExistsError: The file exists, is a folder or a URL, or overlaps a store of prototypes.
    """
    begin = time.monotonic()
    path = check_file(out, [] if prototypes is None else prototypes, overwrite=overwrite, begins=PARQUET)
    found = load_prototypes(prototypes)
    with ProgressReport("generate: oxidation states", len(found), "prototypes", enabled=progress) as report:
        hosts = _counted(found, report)
        plan = plan_substitutions(hosts, count, seed, elements, max_atoms, min_probability)
    ready = time.monotonic()
    with ProgressReport("generate", count, "candidates", enabled=progress) as report:
        candidates = draw_candidates(plan, count, seed, MAX_STRAIN, RATTLE)
        written = write_candidates(candidates, path, overwrite=overwrite, progress=report)
    usable = len(np.unique(plan.host))
    return GenerateReport(path, written, plan.read, usable, len(plan.host), ready - begin, time.monotonic() - ready)


def _counted(prototypes: Sequence[tuple[str, Structure]], report: ProgressReport) -> Iterator[tuple[str, Structure]]:
    for prototype in prototypes:
        yield prototype
        report.advance(1)


def write_candidates(
    candidates: Iterable[Candidate],
    path: str | Path,
    *,
    overwrite: bool = False,
    rows_per_group: int = ROWS_PER_GROUP,
    progress: ProgressReport | None = None,
) -> int:
    """Write candidates to a parquet file, one row group at a time; the file appears only once it is complete.

    Columns: ``id``, ``lattice_vectors`` (3 x 3, angstrom), ``cartesian_site_positions`` (n_atoms x 3, angstrom),
    ``species_at_sites``, ``prototype`` and ``substitution_probability``.

    Args:
        candidates: The candidates; at most one row group of them is held in memory.
        path: File to write.
        overwrite: Replace an existing file.
        rows_per_group: Number of candidates per row group.
        progress: Progress report, which is advanced after each row group.

    Returns:
        The number of candidates written.

    Raises:
        OutputExistsError: The file exists, or the path is a folder or a URL.
    """
    target = check_file(path, overwrite=overwrite, begins=PARQUET)
    target.parent.mkdir(parents=True, exist_ok=True)
    stream, written = iter(candidates), 0
    with (
        atomic_path(target) as scratch,
        pq.ParquetWriter(scratch, CANDIDATE_SCHEMA, compression="zstd") as writer,
    ):
        while batch := list(islice(stream, rows_per_group)):
            writer.write_table(_table(batch), row_group_size=rows_per_group)
            written += len(batch)
            if progress is not None:
                progress.advance(len(batch))
    return written


def _table(candidates: Sequence[Candidate]) -> pa.Table:
    """Convert candidates to a table of `CANDIDATE_SCHEMA`, without a Python object per number."""
    sizes = np.array([len(c.structure) for c in candidates])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    numbers = np.concatenate([c.structure.atomic_number for c in candidates])
    symbols = pa.array(np.array(chemical_symbols, dtype=object)[numbers], pa.string())
    columns = [
        pa.array([c.name for c in candidates], pa.string()),
        _vector_lists(np.concatenate([c.structure.cell for c in candidates]), np.arange(len(candidates) + 1) * 3),
        _vector_lists(np.concatenate([c.structure.positions for c in candidates]), ends),
        pa.ListArray.from_arrays(pa.array(ends, pa.int32()), symbols),
        pa.array([c.prototype for c in candidates], pa.string()),
        pa.array([c.probability for c in candidates], pa.float64()),
    ]
    return pa.table(columns, schema=CANDIDATE_SCHEMA)


def _vector_lists(vectors: NDArray[np.float64], ends: NDArray[np.int64]) -> pa.ListArray:
    """Group vectors, float64[n, 3], into lists; list i holds the vectors from `ends[i]` up to `ends[i + 1]`."""
    inner = pa.ListArray.from_arrays(pa.array(np.arange(len(vectors) + 1) * 3, pa.int32()), pa.array(vectors.ravel()))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), inner)
