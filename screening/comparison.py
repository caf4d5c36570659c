"""Comparison of two screens of the same structures, or of a selection with the DFT energies computed for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import xarray as xr
from numpy.typing import NDArray

from ..pipeline.energy_schemes import NO_DISPERSION, dispersion_of, without_dispersion
from ..pipeline.errors import ConfigError, SourceError, StoreError, detail
from ..pipeline.redaction import redact_urls
from ..pipeline.store.schema import STRUCTURE
from ..pipeline.suggestions import unknown_name
from .chemistry.composition import Compositions
from .chemistry.functionals import OF_SCHEME, StatementError, of_row, stating_field
from .dataset.default_ranking import ENERGY_PER_ATOM, RANKINGS
from .dataset.reader import ScoresReader
from .dataset.repeated_columns import check_columns
from .dataset.scores import open_scores
from .selection.outputs import SCORES_FOLDER
from .selection.variables import numeric_column

# Columns that are compared by default: energies, and quantities that summarise forces.
COMPARED = (*RANKINGS, ENERGY_PER_ATOM, "corrected_energy_per_atom", "max_force", "volume", "volume_change")
ID_COLUMNS = ("structure_id", "id", "material_id", "file_name", "name")
PER_ATOM_COLUMNS = ("dft_energy_per_atom", "energy_per_atom")
TOTAL_COLUMNS = ("dft_energy", "energy", "total_energy")
FORMULA_COLUMNS = ("formula", "pretty_formula")
_NAMED = 10


def compare(a: str | Path, b: str | Path, *, columns: Sequence[str] | None = None, top: int = 100) -> xr.Dataset:
    """Compare two scores datasets, structure by structure.

    Rows are joined by `structure_id`. Ids that are repeated in either dataset are skipped, and so are rows whose
    formulas differ: these have an id in common by chance.

    Example:
        >>> from equiscreen.screening import compare
        >>> found = compare("scores.zarr", "relaxed.zarr")
        >>> int(found["count"].sel(column="energy_per_atom"))
        4

    Args:
        a: Path or URL of a dataset.
        b: Path or URL of another dataset.
        columns: Columns to compare; by default all columns in `COMPARED` that both datasets have.
        top: Number of lowest rows whose overlap is computed.

    Returns:
        Along dim structure: `structure_id`, `row_a`, `row_b`, and `NAME_difference` = b - a of each column. Along dim
        column: `count`, the number of rows where both values are finite and both statuses ok; and, over these rows,
        `mean_difference`, `mean_absolute_difference`, `largest_difference` (absolute), Spearman's rank correlation
        `spearman`, and `top_overlap`, the fraction of the `top` lowest rows that the two datasets have in common; among
        equal values, those with the first ids count as the lowest.

    Raises:
        StoreError: A dataset cannot be read, or changed while it was read; or the two have no structure in common.
        ConfigError: A column is missing from a dataset or not numeric, the two datasets have none of the columns in
            `COMPARED` in common, or `top` is below 1.
    """
    first, second = ScoresReader(a), ScoresReader(b)
    if top < 1:
        raise ConfigError(f"top is {top}; it must be 1 or more")
    names = _columns(first, second, columns)
    row_a, row_b, repeated = _joined(first, second)
    if len(row_a) == 0:
        why = f"; {repeated:,} ids are repeated, and rows cannot be joined by repeated ids" if repeated else ""
        raise StoreError(f"{a} and {b} have no structure_id in common{why}; compare datasets of the same structures")
    alike = _same_composition(first.rows("formula", row_a), second.rows("formula", row_b))
    if not alike.any():
        raise StoreError(
            f"{a} and {b} have ids in common, but never for the same composition; compare datasets of the same "
            "structures"
        )
    row_a, row_b = row_a[alike], row_b[alike]
    ids = first.rows("structure_id", row_a)
    by_id = np.array(sorted(range(len(ids)), key=ids.tolist().__getitem__), dtype=np.int64)
    good = _ok(first, row_a) & _ok(second, row_b)
    found = xr.Dataset(
        {"row_a": (STRUCTURE, row_a), "row_b": (STRUCTURE, row_b)},
        coords={"structure_id": (STRUCTURE, ids), "column": list(names)},
    )
    measures: dict[str, list[float]] = {}
    for name in names:
        values = [one.rows(name, rows).astype(np.float64) for one, rows in ((first, row_a), (second, row_b))]
        attrs = {key: first.specs[name].attrs[key] for key in ("units",) if key in first.specs[name].attrs}
        attrs["description"] = f"{name}: value in b minus value in a"
        found[f"{name}_difference"] = xr.Variable((STRUCTURE,), values[1] - values[0], attrs)
        usable = by_id[(good & np.isfinite(values[0]) & np.isfinite(values[1]))[by_id]]
        for measure, value in _agreement(values[0][usable], values[1][usable], top).items():
            measures.setdefault(measure, []).append(value)
    for measure, each in measures.items():
        found[measure] = ("column", np.array(each, dtype=np.int64 if measure == "count" else np.float64))
    for one in (first, second):
        one.check_unchanged()
    found.attrs = {
        "a": {"path": redact_urls(str(a)), "store_hash": first.hash, "rows": len(first)},
        "b": {"path": redact_urls(str(b)), "store_hash": second.hash, "rows": len(second)},
        "joined": len(row_a),
        "compositions_checked": len(alike),
        "repeated_ids": repeated,
        "other_compositions": int((~alike).sum()),
        "top": top,
        "energy_schemes": [one.attrs.get("model", {}).get("energy_scheme", "") for one in (first, second)],
    }
    return found


def _columns(a: ScoresReader, b: ScoresReader, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None:
        found = tuple(name for name in COMPARED if name in a.specs and name in b.specs)
        if not found:
            raise ConfigError(
                f"{a.path} and {b.path} have none of the usual columns in common; choose the columns to compare"
            )
        return found
    for one in (a, b):
        for name in wanted:
            numeric_column(one, name)
    return tuple(wanted)


def _joined(a: ScoresReader, b: ScoresReader) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the rows of equal ids in a and b (int64[n] each, in the order of a), and the number of repeated ids."""
    ids_a, ids_b = _ids(a, "structure_id"), _ids(b, "structure_id")
    if ids_a.equals(ids_b) and pc.count_distinct(ids_a).as_py() == len(ids_a):
        rows = np.arange(len(ids_a), dtype=np.int64)
        return rows, rows, 0
    repeated = pa.concat_arrays([_repeated(ids_a), _repeated(ids_b)]).unique()
    # `index_in` returns the first of several equal ids, so repeated ids are removed.
    found = pc.index_in(ids_a, value_set=ids_b)
    keep = pc.and_(found.is_valid(), pc.invert(pc.is_in(ids_a, value_set=repeated)))
    row_a = np.flatnonzero(keep.to_numpy(zero_copy_only=False)).astype(np.int64)
    row_b = found.filter(keep).to_numpy(zero_copy_only=False).astype(np.int64)
    return row_a, row_b, len(repeated)


def _same_composition(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether pairs of formulas have the same reduced composition: bool[n]; false if one is not a formula."""
    compositions = Compositions()

    def numbers(texts: NDArray[Any]) -> list[int]:
        found = []
        for text in texts.tolist():
            try:
                found.append(compositions.of_formula(str(text)))
            except ConfigError:
                found.append(-1)
        return found

    left, right = np.array(numbers(a), dtype=np.int64), np.array(numbers(b), dtype=np.int64)
    return np.asarray((left == right) & (left >= 0))


def _ids(scores: ScoresReader, name: str) -> pa.Array:
    """Return a column of text, read chunk by chunk into Arrow's compact form."""
    pieces = [pa.array(scores.column(name, *span).tolist(), type=pa.large_string()) for span in scores.chunks()]
    return pa.concat_arrays([pa.array([], type=pa.large_string()), *pieces])


def _repeated(ids: pa.Array) -> pa.Array:
    """Return the ids that occur more than once."""
    counts = pc.value_counts(ids)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _ok(scores: ScoresReader, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    ok = scores.meanings("status").get("ok", 0)
    return np.asarray(scores.rows("status", rows) == ok)


def _agreement(a: NDArray[np.float64], b: NDArray[np.float64], top: int) -> dict[str, float]:
    """Return measures of the agreement of two columns, whose rows are in the order of their ids."""
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
    """Return the correlation of the ranks; NaN if either column is constant."""
    from scipy.stats import rankdata  # noqa: PLC0415 - takes half a second

    ranks = rankdata(a), rankdata(b)
    if len(a) < 2 or min(np.ptp(rank) for rank in ranks) == 0.0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def join_energies(
    scores: str | Path, table: str | Path, *, id_column: str | None = None, energy_column: str | None = None
) -> xr.Dataset:
    """Add DFT energies to the scores of the structures that they were computed for.

    The energies must follow the energy scheme of the model (`attrs["model"]["energy_scheme"]`); raw VASP energies
    belong to ``mp-uncorrected``. Rows that state another functional, in a column such as ``run_type`` or
    ``functional``, or that contradict themselves, are left out and counted.

    Example:
        >>> from equiscreen.screening import join_energies
        >>> found = join_energies("best", "vasp.csv")
        >>> int(found["energy_error_per_atom"].notnull().sum())
        2

    Args:
        scores: Folder of a selection, or a scores dataset.
        table: CSV or parquet file with one row per calculation. If it has a column ``formula`` (or ``pretty_formula``),
            each formula must have the composition of the structure with the same id. Without this column, ids that
            agree by chance go unnoticed; a note in the result states this.
        id_column: Column of ids or file names of the selection; by default the first of `ID_COLUMNS` in the table.
        energy_column: Column of energies, in eV/atom if its name ends in ``per_atom``, otherwise in eV per cell; by
            default the first of `PER_ATOM_COLUMNS` and `TOTAL_COLUMNS` in the table.

    Returns:
        The scores with `dft_energy_per_atom` and `energy_error_per_atom` (model minus DFT), NaN for structures without
        a DFT energy. attrs["dft"] holds the number of joined rows, the number of joined rows whose composition was
        checked, and the number and the first of the ids that are not among the scores.

    Raises:
        SourceError: The table cannot be read, a column appears twice, an energy is not a number, no energy is
            comparable, an id has two energies or belongs to several structures, or a formula differs in composition
            from the structure.
        ConfigError: A column is missing, no id is among the scores, or the scores have no energies.
        StoreError: The scores cannot be read, or changed while they were read.
    """
    folder = Path(str(scores)) / SCORES_FOLDER
    place = folder if "://" not in str(scores) and folder.exists() else scores
    rows = ScoresReader(place)
    if "energy_per_atom" not in rows.specs:
        raise ConfigError(
            f"{place} has no column energy_per_atom to compare the DFT energies with; use scores of a model that "
            "predicts energies"
        )
    scheme = str(rows.attrs.get("model", {}).get("energy_scheme", ""))
    left_out: Counter[str] = Counter()
    ids, energies, energy_name, formulas = _read_energies(Path(table), id_column, energy_column, scheme, left_out)
    key, found = _matched(rows, ids)
    joined = np.flatnonzero(found >= 0)
    if len(joined) == 0:
        raise ConfigError(
            f"{table}: none of the {len(ids):,} ids in this table is among the ids of {place}; set id_column to the "
            "column of structure ids or file names"
        )
    checked = _check_compositions(table, rows, [ids[row] for row in joined], found[joined], formulas)
    dft, error = _dft_columns(rows, found[joined], energies[joined], per_atom=energy_name.endswith("per_atom"))
    rows.check_unchanged()
    dataset = open_scores(place)
    units = {"units": "eV/atom"}
    note = _unchecked(len(joined) - checked, len(joined), key)
    description = {"description": f"DFT energy{note and f'; {note}'}"}
    dataset["dft_energy_per_atom"] = xr.Variable((STRUCTURE,), dft, {**units, **description})
    dataset["energy_error_per_atom"] = xr.Variable(
        (STRUCTURE,), error, {**units, "description": "energy_per_atom minus dft_energy_per_atom"}
    )
    unknown = [ids[row] for row in np.flatnonzero(found < 0).tolist()]
    dataset.attrs["dft"] = {
        "table": str(table),
        "joined_by": key,
        "energy_column": energy_name,
        "compared_with": f"energy_per_atom ({scheme})",
        "joined": len(joined),
        "compositions_checked": checked,
        **({"note": note} if note else {}),
        "left_out_by_reason": dict(left_out),
        "unknown_ids": len(unknown),
        "first_unknown_ids": unknown[:_NAMED],
        "mean_absolute_error": float(np.nanmean(np.abs(error))) if np.isfinite(error).any() else None,
    }
    return dataset


def _dft_columns(
    rows: ScoresReader, target: NDArray[np.int64], energies: NDArray[np.float64], *, per_atom: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return DFT energies and errors of the model, float64[n_rows] each, eV/atom; NaN without a calculation.

    Args:
        rows: Reader of the scores.
        target: int64[n], row of each calculation.
        energies: float64[n], energies, eV/atom, or eV per cell.
        per_atom: Whether `energies` are per atom.
    """
    dft, error = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    dft[target] = energies if per_atom else energies / rows.rows("n_atoms", target)
    error[target] = rows.rows("energy_per_atom", target) - dft[target]
    return dft, error


def _check_compositions(
    table: str | Path,
    rows: ScoresReader,
    ids: Sequence[str],
    target: NDArray[np.int64],
    formulas: Mapping[str, Sequence[str]],
) -> int:
    """Check that calculations belong to the structures that they are joined with.

    Args:
        table: File of the calculations.
        rows: Reader of the scores.
        ids: Ids of the calculations.
        target: int64[n], row of each calculation.
        formulas: Formulas by id, where the table gives them.

    Returns:
        Number of calculations with a formula.

    Raises:
        SourceError: A formula of the table differs in composition from the structure.
    """
    given = [(place, text) for place, one in enumerate(ids) for text in formulas.get(one, ())]
    if not given:
        return 0
    places = np.array([place for place, _ in given], dtype=np.int64)
    texts = np.array([text for _, text in given], dtype=object)
    stored = rows.rows("formula", target)[places]
    other = np.flatnonzero(~_same_composition(texts, stored))
    if len(other):
        one = int(other[0])
        count = len(np.unique(places[other]))
        raise SourceError(
            f"{table}: {ids[places[one]]!r} is {texts[one]} in this table, but {stored[one]} in {rows.path}; correct "
            f"the ids in the table ({count:,} of {len(ids):,} ids disagree)"
        )
    return len(np.unique(places))


def _unchecked(count: int, joined: int, key: str) -> str:
    """Return a note about rows that were joined by their ids alone; empty if there are none."""
    if not count:
        return ""
    which = "the" if count == joined else f"{count:,} of {joined:,}"
    return f"{which} rows were joined by {key} alone: the table gives no formula, so compositions were not checked"


def _matched(rows: ScoresReader, ids: Sequence[str]) -> tuple[str, NDArray[np.int64]]:
    """Return the column in which ids were found, and the row of each id, or -1 if it was not found: int64[n].

    Ids are looked up in structure_id, or in file_name if more of them belong to exactly one structure there.

    Raises:
        SourceError: Several rows have the same id.
        StoreError: The scores have no ids.
    """
    wanted = pa.array(list(ids), type=pa.large_string())
    best: tuple[str, NDArray[np.int64], NDArray[np.bool_]] | None = None
    most = -1
    for name in ("structure_id", "file_name"):
        if name not in rows.specs:
            continue
        own = _ids(rows, name)
        found = pc.fill_null(pc.index_in(wanted, value_set=own), -1).to_numpy().astype(np.int64)
        repeated = pc.is_in(wanted, value_set=_repeated(own)).to_numpy(zero_copy_only=False)
        certain = int(((found >= 0) & ~repeated).sum())
        if certain > most:
            best, most = (name, found, repeated), certain
    if best is None:
        raise StoreError(f"{rows.path} has no column structure_id; score the structures again with `equiscreen screen`")
    name, found, repeated = best
    if repeated.any():
        raise SourceError(
            f"{rows.path}: {ids[int(np.argmax(repeated))]!r} is the {name} of several structures; use the unique file "
            "names of a selection as ids"
        )
    return name, found


def _read_energies(
    path: Path, id_column: str | None, energy_column: str | None, scheme: str, left_out: Counter[str]
) -> tuple[list[str], NDArray[np.float64], str, dict[str, list[str]]]:
    """Return the ids and finite energies of a table, the name of the energy column, and the formulas by id, if any.

    Energies are float64[n], in eV/atom or eV per cell, as the name of their column shows.

    Args:
        path: The table.
        id_column: See `join_energies`.
        energy_column: See `join_energies`.
        scheme: Energy scheme of the model.
        left_out: Updated with the number of rows of other functionals, by reason.

    Raises:
        SourceError: The table cannot be read, a column appears twice, an energy is not a number, no energy is
            comparable, or an id has two energies.
        ConfigError: A column is missing.
    """
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read ({detail(error)}); give a CSV or parquet file") from error
    key = _column(path, table, id_column, ID_COLUMNS, "id_column")
    named = _column(path, table, energy_column, (*PER_ATOM_COLUMNS, *TOTAL_COLUMNS), "energy_column")
    try:
        values = table[named].cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise SourceError(
            f"{path}: column {named} holds a value that is not a number ({detail(error)}); correct or remove it"
        ) from error
    ids = [str(value) for value in table[key].to_pylist()]
    energies: dict[str, float] = {}
    for one, value, reason in zip(ids, values.tolist(), _other_functionals(path, table, scheme), strict=True):
        if not np.isfinite(value):
            continue  # an unfinished calculation
        if reason:
            left_out[reason] += 1
            continue
        if energies.setdefault(one, value) != value:
            raise SourceError(f"{path}: {one!r} has two energies; keep only one")
    if not energies:
        why = "".join(f"; {count:,} left out: {reason}" for reason, count in left_out.items())
        raise SourceError(
            f"{path} has no finite energy that can be compared with the energies of the model ({scheme}){why}"
        )
    return list(energies), np.array(list(energies.values())), named, _formulas(path, table, ids)


def _formulas(path: Path, table: pa.Table, ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the formulas of a table by id, where the table gives them.

    Raises:
        SourceError: The column appears twice.
    """
    column = next((name for name in FORMULA_COLUMNS if name in table.column_names), None)
    if column is None:
        return {}
    check_columns(path, [column], table.column_names)
    formulas: dict[str, list[str]] = {}
    for one, text in zip(ids, table[column].to_pylist(), strict=True):
        if text is not None and str(text).strip():
            formulas.setdefault(one, []).append(str(text))
    return formulas


def _other_functionals(path: Path, table: pa.Table, scheme: str) -> list[str]:
    """Return why each row of a table cannot be compared with energies of a scheme; empty for comparable rows.

    Raises:
        SourceError: A column appears twice.
    """
    names = [name for name in table.column_names if stating_field(name) is not None]
    check_columns(path, names, table.column_names)
    rows = table.select(names).to_pylist() if names else [{}] * len(table)
    allowed = OF_SCHEME.get(without_dispersion(scheme))
    if allowed and dispersion_of(scheme) != NO_DISPERSION:  # which a run type need not state
        allowed |= {f"{name}+vdW" for name in allowed}
    reasons = []
    for row in rows:
        try:
            stated = of_row(row)
        except StatementError as error:
            reasons.append(error.reason)
            continue
        other = stated is not None and allowed is not None and str(stated) not in allowed
        reasons.append(f"functional {stated}" if other else "")
    return reasons


def _read_csv(path: Path) -> pa.Table:
    """Read a CSV file, with ids, formulas and functionals as text even if they look like numbers."""
    columns = pyarrow.csv.read_csv(path).column_names
    text = (*ID_COLUMNS, *FORMULA_COLUMNS)
    kinds = {name: pa.string() for name in columns if name in text or stating_field(name) is not None}
    return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=kinds))


def _column(path: Path, table: pa.Table, wanted: str | None, known: Sequence[str], argument: str) -> str:
    if wanted is not None:
        if wanted not in table.column_names:
            raise ConfigError(f"{path}: {unknown_name('column', wanted, table.column_names)}")
        found: str | None = wanted
    else:
        found = next((name for name in known if name in table.column_names), None)
    if found is None:
        raise ConfigError(f"{path} has none of the columns {', '.join(known)}; set {argument}")
    check_columns(path, [found], table.column_names)
    return found
