"""Selection of the best candidates, and the files that describe them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xarray as xr

from ...pipeline.atomic import write_text_atomically
from ...pipeline.errors import ConfigError, OutputExistsError, StoreError
from ...pipeline.provenance import recorded_path
from ...pipeline.runs.lock import locked
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import check_place, make_working_folder
from ..dataset.paths import dataset_in
from ..dataset.ranked_table import CSV_FILE, MOST_ROWS, ROWS, RankedTable
from ..dataset.reader import ScoresReader, place_of_graphs
from ..dataset.scores import open_scores
from .criteria import Chosen, SelectionCriteria, SelectionPlan, choose
from .outputs import GRAPHS_FOLDER, RECIPE_FILE, SCORES_FOLDER, SELECTION_SCHEMA, OutputFormat, SelectionWriter

# Largest number of structures that can each have files of their own.
MAX_FILES = 20_000
_LOCK, _WORK, _REPLACED = "lock", "selection", "replaced"
# Subfolder of the results of `equiscreen rank` that holds its list.
_LISTED = "best"
_PACKAGES = ("equiscreen", "numpy", "moyopy", "pymatgen", "SMACT")
_OF_FILES = (OutputFormat.CIF, OutputFormat.VASP, OutputFormat.VASP_STATIC)


def select(
    scores: str | Path,
    out: str | Path,
    where: str | None = None,
    *,
    top: int | None = None,
    by: str | None = None,
    allowed_elements: Sequence[str] = (),
    any_elements: Sequence[str] = (),
    excluded_elements: Sequence[str] = (),
    pareto: Sequence[str] = (),
    per_system: int | None = None,
    per_prototype: int | None = None,
    uncertainty_weight: float = 0.0,
    known: str | Path | None = None,
    formats: Sequence[str] = ("cif", "csv", "zarr"),
    store: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> xr.Dataset:
    """Choose the best structures of a screen, relaxation or hull, and write them.

    Rows are considered if their status is ok (unless the filter has a condition on `status`) and their ranking column
    is finite. The result and recipe.json record how many rows were skipped for each reason. Derived columns are added
    (see `selection.derived_columns.DerivedColumns`): chemical system, magnetic and f elements, charge neutrality and
    electronegativity by SMACT's rules, prototype label, and novelty against known crystals. The filter may use these
    columns too; they are computed only for rows that meet its other conditions, best first, until enough structures are
    found.

    Equal values are ordered by the hash of their structures, then by their ids, so that the result does not depend on
    the order of the rows. With `top`, rows are in the order of their rank; without it, in the order of the scores, with
    `rank` as a column.

    Example:
        >>> from equiscreen.screening import select
        >>> best = select("relaxed.hull.zarr", "alloys", "n_atoms <= 20 and energy_above_hull < 0.05", top=2)
        >>> best["structure_id"].values.tolist()
        ['Cu', 'Al']

    Args:
        scores: Path or URL of the dataset, or of a results folder that holds it.
        out: Folder to write.
        where: Filter expression; see `selection.filter_expression`.
        top: Number of structures; None for all.
        by: Column to rank by, lowest first, or highest first if preceded by a minus; by default the column that
            `equiscreen.rank` used if `scores` is its results folder, otherwise the first that exists of the energy
            above hull, the formation energy and (for a single composition) the energy per atom.
        allowed_elements: Symbols of the only elements that a structure may contain.
        any_elements: Symbols of elements, at least one of which a structure must contain.
        excluded_elements: Symbols of elements that a structure must not contain.
        pareto: Two or more columns, each preceded by a minus if higher is better: choose the structures that no other
            structure dominates. With `top`, further fronts follow until there are enough structures.
        per_system: Maximum number of structures per chemical system; the best ones are kept.
        per_prototype: Maximum number of structures per prototype; the best ones are kept.
        uncertainty_weight: Number of standard deviations by which values are made worse before they are ranked.
        known: Graph store of known crystals.
        formats: Output formats; see `OutputFormat`.
        store: Graph store of the scores, if it was moved.
        overwrite: Replace an earlier selection.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.

    Returns:
        The selected rows.

    Raises:
        ConfigError: The filter, a column, an element, a number or a format is invalid; too many structures are selected
            for one file each; or a required package is not installed.
        StoreError: The scores, their graph store or the known crystals cannot be read, or changed during the selection;
            or no structure was selected.
        OutputExistsError: The output exists, or another run is writing it.
    """
    begin = time.monotonic()
    wanted = _formats(formats)
    folder_of_results, scores = scores, dataset_in(scores)
    rows = ScoresReader(scores, store)
    if by is None and not pareto:
        by = _earlier_ranking(folder_of_results, rows)
    criteria = SelectionCriteria(
        where=where,
        top=top,
        by=by,
        allowed_elements=allowed_elements,
        any_elements=any_elements,
        excluded_elements=excluded_elements,
        pareto=pareto,
        per_system=per_system,
        per_prototype=per_prototype,
        uncertainty_weight=uncertainty_weight,
        known=known,
    )
    plan = SelectionPlan.of(rows, criteria)
    read = [str(path) for path in (scores, known, place_of_graphs(scores, rows.attrs, store)) if path]
    inputs = [Path(path) for path in read if "://" not in path]
    with _output_folder(out, inputs, overwrite=overwrite) as folder:
        chosen = choose(rows, plan)
        _check_number(chosen, wanted, scores)
        recipe = _recipe(rows, plan, chosen, wanted, Path(out) / RECIPE_FILE)
        writer = SelectionWriter(rows, plan, chosen, folder, Path(out), wanted)
        with ProgressReport("select", len(chosen.rows), enabled=progress) as bar:
            writer.run(recipe, bar)
        recipe |= {"not_written": writer.left_out, "seconds": round(time.monotonic() - begin, 3)}
        writer.finish(recipe)
        if OutputFormat.CSV in wanted:
            made = open_scores(folder / SCORES_FOLDER) if OutputFormat.ZARR in wanted else writer.dataset(recipe)
            RankedTable(made).write_csv(folder / CSV_FILE)
        recipe["files_sha256"] = _digests(folder)
        rows.check_unchanged()
        if chosen.known is not None:
            chosen.known.store.check_unchanged()
        write_text_atomically(folder / RECIPE_FILE, json.dumps(recipe, indent=1, default=str) + "\n")
    return open_scores(Path(out) / SCORES_FOLDER) if OutputFormat.ZARR in wanted else writer.dataset(recipe)


def _earlier_ranking(folder: str | Path, rows: ScoresReader) -> str | None:
    """Return the column by which `rank` ordered the list in a results folder; None for other paths."""
    try:
        recipe = json.loads((Path(folder) / _LISTED / RECIPE_FILE).read_bytes())
        by = recipe["criteria"]["by"] if recipe["scores"]["store_hash"] == rows.hash else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return by if isinstance(by, str) else None


def _check_number(chosen: Chosen, wanted: Sequence[OutputFormat], scores: str | Path) -> None:
    """Check that there are structures, but not too many for one file each.

    Raises:
        StoreError: No structure was selected.
        ConfigError: There are more than `MAX_FILES` structures.
    """
    if len(chosen.rows) == 0:
        raise StoreError(f"{scores}: nothing was selected; loosen the criteria ({_listed(chosen.left_out)})")
    if len(chosen.rows) > MAX_FILES and set(wanted) & set(_OF_FILES):
        raise ConfigError(
            f"{len(chosen.rows):,} structures are too many for one file each; use `--top`, or `--format "
            "csv,extxyz,parquet,zarr`"
        )


def summary(found: xr.Dataset, path: str | Path) -> str:
    """Return a summary of a finished selection: the best rows, counts, structures that were not written, and notes."""
    recipe = found.attrs["selection"]
    left_out = _listed(recipe["left_out"])
    lines = [
        f"{path}: {recipe['selected']:,} of {recipe['rows']:,} structures, by {recipe['ranked_by']}"
        + (f"; skipped: {left_out}" if left_out else "")
        + f"; {recipe['seconds']:.1f} s without start-up"
    ]
    for file, names in recipe["not_written"].items():
        lines.append(
            f"{file}: structures not written: {len(names)} (the first, {names[0][0]}: {names[0][1]}); recipe.json "
            "lists all"
        )
    rows = min(recipe["criteria"]["top"] or ROWS, MOST_ROWS)
    where = f"; all are in {Path(path) / CSV_FILE}" if OutputFormat.CSV in recipe["formats"] else ""
    beyond = [f"the best {rows:,} of {recipe['selected']:,}{where}"] if rows < recipe["selected"] else []
    return "\n".join([RankedTable(found).text(rows), *beyond, "", *lines, *recipe["notes"]])


def _formats(given: Sequence[str]) -> tuple[OutputFormat, ...]:
    names = [name.strip() for text in ([given] if isinstance(given, str) else given) for name in text.split(",")]
    known = [one.value for one in OutputFormat]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(f"unknown format {unknown[0] if unknown else ''!r}; choose from {', '.join(known)}")
    return tuple(OutputFormat(name) for name in dict.fromkeys(names))


def _recipe(
    scores: ScoresReader, plan: SelectionPlan, chosen: Chosen, wanted: Sequence[OutputFormat], file: Path
) -> dict[str, Any]:
    """Return the record of the selection, to be written to `file`: inputs, criteria and counts."""
    known = chosen.known
    return {
        "schema": SELECTION_SCHEMA,
        "scores": {"path": recorded_path(scores.path, file), "store_hash": scores.hash},
        "graph_store": scores.attrs_for(file).get("graph_store"),
        "model": scores.attrs.get("model"),
        "kind": scores.attrs.get("kind", "screened"),
        "criteria": plan.criteria.record(file),
        "known": None
        if known is None
        else {"path": recorded_path(known.store.path, file), "store_hash": known.store.store_hash},
        "formats": [str(one) for one in wanted],
        "ranked_by": plan.text,
        "rows": len(scores),
        "left_out": chosen.left_out,
        "selected": len(chosen.rows),
        "notes": list(chosen.derived.notes),
        "software": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file outside the stores, which have their own checksums."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/", maxsplit=1)[0] not in (SCORES_FOLDER, GRAPHS_FOLDER):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


@contextmanager
def _output_folder(out: str | Path, inputs: Sequence[Path], *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder that is renamed to `out` once it is complete.

    Raises:
        OutputExistsError: The output exists, or another run is writing it.
    """
    if "://" in str(out):
        raise OutputExistsError(
            f"{out}: a selection can only be written to a local folder; write it there, then copy it"
        )
    target = Path(out).resolve()
    partial = target.with_name(f"{target.name}.partial")
    check_place(target, inputs)
    _check_free(target, out, overwrite=overwrite)
    make_working_folder(partial, out, _LOCK)
    with locked(partial / _LOCK):
        _check_free(target, out, overwrite=overwrite)
        for left in (_WORK, "parts"):
            shutil.rmtree(partial / left, ignore_errors=True)  # left by an interrupted run
        (partial / _WORK).mkdir()
        try:
            yield partial / _WORK
            if target.exists():
                target.rename(partial / _REPLACED)
            (partial / _WORK).rename(target)
        finally:
            if (partial / _REPLACED).exists() and not target.exists():
                (partial / _REPLACED).rename(target)
            shutil.rmtree(partial, ignore_errors=True)


def _check_free(target: Path, out: str | Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{out} already exists; choose another `--out`, or use `--overwrite`")
    recipe = target / RECIPE_FILE
    if not recipe.is_file() or SELECTION_SCHEMA not in recipe.read_text():
        raise OutputExistsError(
            f"{out} already exists and is not a selection, so it is not overwritten; choose another `--out`"
        )
