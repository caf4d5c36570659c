"""Two datasets side by side: two screens of the same structures, or a selection and the DFT energies that came back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import xarray as xr
from numpy.typing import NDArray

from ..pipeline.errors import ConfigError, SourceError, StoreError, detail
from ..pipeline.store.schema import STRUCTURE
from ..pipeline.suggestions import unknown_name
from .dataset.reader import ScoresReader
from .dataset.scores import open_scores
from .selection.outputs import SCORES_FOLDER
from .selection.ranking import MEASURES
from .selection.variables import numeric_column

# Columns that are compared if nothing is said: energies, and what stands for forces.
COMPARED = (*MEASURES, "corrected_energy_per_atom", "max_force", "volume", "volume_change")
ID_COLUMNS = ("structure_id", "id", "material_id", "file_name", "name")
PER_ATOM_COLUMNS = ("dft_energy_per_atom", "energy_per_atom")
TOTAL_COLUMNS = ("dft_energy", "energy", "total_energy")
_NAMED = 10


def compare(a: str | Path, b: str | Path, *, columns: Sequence[str] | None = None, top: int = 100) -> xr.Dataset:
    """Compare two scores datasets, structure by structure.

    Rows are joined by `structure_id`; ids that one of the two has several times are left out.

    Example:
        >>> found = compare("fast.zarr", "accurate.zarr")  # doctest: +SKIP
        >>> found[["spearman", "top_overlap"]].to_dataframe()  # doctest: +SKIP

    Args:
        a: A dataset, path or URL.
        b: Another.
        columns: What to compare; those of `COMPARED` that both have if not said.
        top: How many of the lowest to look for in both.

    Returns:
        Along dim structure: `structure_id`, `row_a`, `row_b`, and `NAME_difference` = b - a of each column. Along dim
        column: `count` of rows where both are finite and both statuses ok; over these `mean_difference`,
        `mean_absolute_difference`, `largest_difference`, Spearman's rank correlation `spearman`, and `top_overlap`, the
        fraction of the `top` lowest that both have in common.

    Raises:
        StoreError: One cannot be read, or they have no structure in common.
        ConfigError: A column that not both have.
    """
    first, second = ScoresReader(a), ScoresReader(b)
    if top < 1:
        raise ConfigError(f"top of {top}; it is 1 or more")
    names = _columns(first, second, columns)
    row_a, row_b, repeated = _joined(first, second)
    if len(row_a) == 0:
        raise StoreError(f"{a} and {b} have no structure_id in common")
    good = _ok(first, row_a) & _ok(second, row_b)
    found = xr.Dataset(
        {"row_a": (STRUCTURE, row_a), "row_b": (STRUCTURE, row_b)},
        coords={"structure_id": (STRUCTURE, first.rows("structure_id", row_a)), "column": list(names)},
    )
    measures: dict[str, list[float]] = {}
    for name in names:
        values = [one.rows(name, rows).astype(np.float64) for one, rows in ((first, row_a), (second, row_b))]
        attrs = {key: first.specs[name].attrs[key] for key in ("units",) if key in first.specs[name].attrs}
        attrs["description"] = f"{name} of b less that of a"
        found[f"{name}_difference"] = xr.Variable((STRUCTURE,), values[1] - values[0], attrs)
        usable = good & np.isfinite(values[0]) & np.isfinite(values[1])
        for measure, value in _agreement(values[0][usable], values[1][usable], top).items():
            measures.setdefault(measure, []).append(value)
    for measure, each in measures.items():
        found[measure] = ("column", np.array(each, dtype=np.int64 if measure == "count" else np.float64))
    found.attrs = {
        "a": {"path": str(a), "store_hash": first.hash, "rows": len(first)},
        "b": {"path": str(b), "store_hash": second.hash, "rows": len(second)},
        "joined": len(row_a),
        "repeated_ids": repeated,
        "top": top,
        "energy_schemes": [one.attrs.get("model", {}).get("energy_scheme", "") for one in (first, second)],
    }
    return found


def _columns(a: ScoresReader, b: ScoresReader, said: Sequence[str] | None) -> tuple[str, ...]:
    if said is None:
        found = tuple(name for name in COMPARED if name in a.specs and name in b.specs)
        if not found:
            raise ConfigError(f"{a.path} and {b.path} have none of the usual columns in common; say which to compare")
        return found
    for one in (a, b):
        for name in said:
            numeric_column(one, name)
    return tuple(said)


def _joined(a: ScoresReader, b: ScoresReader) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Rows of equal ids in both, in the order of a, and how many ids were left out because they are repeated."""
    ids_a, ids_b = _ids(a, "structure_id"), _ids(b, "structure_id")
    if ids_a.equals(ids_b) and pc.count_distinct(ids_a).as_py() == len(ids_a):
        rows = np.arange(len(ids_a), dtype=np.int64)
        return rows, rows, 0
    repeated = pa.concat_arrays([_repeated(ids_a), _repeated(ids_b)]).unique()
    # `index_in` gives the first of equal ids; those that are not alone are taken out.
    found = pc.index_in(ids_a, value_set=ids_b)
    keep = pc.and_(found.is_valid(), pc.invert(pc.is_in(ids_a, value_set=repeated)))
    row_a = np.flatnonzero(keep.to_numpy(zero_copy_only=False)).astype(np.int64)
    row_b = found.filter(keep).to_numpy(zero_copy_only=False).astype(np.int64)
    return row_a, row_b, len(repeated)


def _ids(scores: ScoresReader, name: str) -> pa.Array:
    """A column of text, read a chunk at a time into arrow's compact form."""
    pieces = [pa.array(scores.column(name, *span).tolist(), type=pa.large_string()) for span in scores.chunks()]
    return pa.concat_arrays([pa.array([], type=pa.large_string()), *pieces])


def _repeated(ids: pa.Array) -> pa.Array:
    """Those that are there more than once."""
    counts = pc.value_counts(ids)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _ok(scores: ScoresReader, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    ok = scores.meanings("status").get("ok", 0)
    return np.asarray(scores.rows("status", rows) == ok)


def _agreement(a: NDArray[np.float64], b: NDArray[np.float64], top: int) -> dict[str, float]:
    """How much two columns agree."""
    difference = b - a
    wanted = min(top, len(a))
    nothing = float("nan")
    lowest = [set(np.argsort(values, kind="stable")[:wanted].tolist()) for values in (a, b)]
    return {
        "count": len(a),
        "mean_difference": float(difference.mean()) if len(a) else nothing,
        "mean_absolute_difference": float(np.abs(difference).mean()) if len(a) else nothing,
        "largest_difference": float(np.abs(difference).max()) if len(a) else nothing,
        "spearman": _spearman(a, b),
        "top_overlap": len(lowest[0] & lowest[1]) / wanted if wanted else nothing,
    }


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of the ranks; NaN where one of the two is constant."""
    from scipy.stats import rankdata  # noqa: PLC0415 - takes half a second

    ranks = rankdata(a), rankdata(b)
    if len(a) < 2 or min(np.ptp(rank) for rank in ranks) == 0.0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def join_energies(
    scores: str | Path, table: str | Path, *, id_column: str | None = None, energy_column: str | None = None
) -> xr.Dataset:
    """Put DFT energies that came back beside the scores that asked for them.

    Energies have to be of the kind that the model was trained on (`attrs["model"]["energy_scheme"]`); raw VASP energies
    are for ``mp-uncorrected``.

    Example:
        >>> found = join_energies("best", "vasp.csv")  # doctest: +SKIP
        >>> float(abs(found["energy_error_per_atom"]).mean())  # doctest: +SKIP

    Args:
        scores: Folder of a selection, or a scores dataset.
        table: CSV or parquet with a row for each calculation.
        id_column: Its column of ids, or of names of the selection's files; the first of `ID_COLUMNS` if not said.
        energy_column: Its column of energies, eV/atom if its name ends in ``per_atom``, otherwise eV of the cell; the
            first of `PER_ATOM_COLUMNS` and `TOTAL_COLUMNS` if not said.

    Returns:
        The scores with `dft_energy_per_atom` and `energy_error_per_atom` (the model's less DFT's), NaN where nothing
        came back; attrs["dft"] says how many were joined and which ids are not among the scores.

    Raises:
        SourceError: The table cannot be read, or an id has two energies.
        ConfigError: No such columns, or nothing to be joined.
        StoreError: The scores cannot be read.
    """
    folder = Path(str(scores)) / SCORES_FOLDER
    place = folder if "://" not in str(scores) and folder.exists() else scores
    rows = ScoresReader(place)
    if "energy_per_atom" not in rows.specs:
        raise ConfigError(f"{place}: has no energy_per_atom to compare with")
    ids, energies, named = _read_energies(Path(table), id_column, energy_column)
    key, found = _matched(rows, ids)
    joined = np.flatnonzero(found >= 0)
    if len(joined) == 0:
        raise ConfigError(f"{table}: none of its {len(ids):,} ids is among those of {place}")
    target = found[joined]
    dft = np.full(len(rows), np.nan)
    values = energies[joined]
    dft[target] = values if named.endswith("per_atom") else values / rows.rows("n_atoms", target)
    error = np.full(len(rows), np.nan)
    error[target] = rows.rows("energy_per_atom", target) - dft[target]
    dataset = open_scores(place)
    units = {"units": "eV/atom"}
    dataset["dft_energy_per_atom"] = xr.Variable((STRUCTURE,), dft, {**units, "description": "energy by DFT"})
    dataset["energy_error_per_atom"] = xr.Variable(
        (STRUCTURE,), error, {**units, "description": "energy_per_atom less dft_energy_per_atom"}
    )
    unknown = [ids[place] for place in np.flatnonzero(found < 0).tolist()]
    scheme = rows.attrs.get("model", {}).get("energy_scheme", "")
    dataset.attrs["dft"] = {
        "table": str(table),
        "joined_by": key,
        "energy_column": named,
        "compared_with": f"energy_per_atom ({scheme})",
        "joined": len(joined),
        "unknown_ids": len(unknown),
        "first_unknown_ids": unknown[:_NAMED],
        "mean_absolute_error": float(np.nanmean(np.abs(error))) if np.isfinite(error).any() else None,
    }
    return dataset


def _matched(rows: ScoresReader, ids: Sequence[str]) -> tuple[str, NDArray[np.int64]]:
    """The row of each id, -1 without; by structure_id, or by the names of files if that finds more.

    Raises:
        SourceError: An id that several rows have.
    """
    best: tuple[str, NDArray[np.int64]] | None = None
    for name in ("structure_id", "file_name"):
        if name not in rows.specs:
            continue
        own = _ids(rows, name)
        wanted = pa.array(list(ids), type=pa.large_string())
        found = pc.fill_null(pc.index_in(wanted, value_set=own), -1).to_numpy().astype(np.int64)
        if best is None or (found >= 0).sum() > (best[1] >= 0).sum():
            repeated = pc.is_in(wanted, value_set=_repeated(own)).to_numpy(zero_copy_only=False)
            if repeated.any():
                raise SourceError(f"{rows.path}: {ids[int(np.argmax(repeated))]!r} is the {name} of several structures")
            best = (name, found)
    if best is None:
        raise StoreError(f"{rows.path}: has no structure_id")
    return best


def _read_energies(
    path: Path, id_column: str | None, energy_column: str | None
) -> tuple[list[str], NDArray[np.float64], str]:
    """Ids and finite energies of a table, and the name of the column of the energies.

    Raises:
        SourceError: It cannot be read, or an id has two energies.
        ConfigError: No such columns.
    """
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read ({detail(error)})") from error
    key = _column(path, table, id_column, ID_COLUMNS, "id_column")
    named = _column(path, table, energy_column, (*PER_ATOM_COLUMNS, *TOTAL_COLUMNS), "energy_column")
    try:
        values = table[named].cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise SourceError(f"{path}: {named} holds what is no number ({detail(error)})") from error
    ids = [str(value) for value in table[key].to_pylist()]
    energies: dict[str, float] = {}
    for one, value in zip(ids, values.tolist(), strict=True):
        if not np.isfinite(value):
            continue  # a calculation that did not come to an end
        if energies.setdefault(one, value) != value:
            raise SourceError(f"{path}: {one!r} has two energies; keep the one that counts")
    if not energies:
        raise SourceError(f"{path}: has no finite energy")
    return list(energies), np.array(list(energies.values())), named


def _read_csv(path: Path) -> pa.Table:
    """A CSV file, ids as text also where they look like numbers."""
    columns = pyarrow.csv.read_csv(path).column_names
    kinds = {name: pa.string() for name in columns if name in ID_COLUMNS}
    return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=kinds))


def _column(path: Path, table: pa.Table, said: str | None, known: Sequence[str], word: str) -> str:
    if said is not None:
        if said not in table.column_names:
            raise ConfigError(f"{path}: {unknown_name('column', said, table.column_names)}")
        return said
    found = next((name for name in known if name in table.column_names), None)
    if found is None:
        raise ConfigError(f"{path}: has none of the columns {', '.join(known)}; say {word}")
    return found
