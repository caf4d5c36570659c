"""Selecting: from all candidates to those worth a calculation, as files that go into one."""

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
from ...pipeline.runs.lock import locked
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.runs.staging import check_place
from ..dataset.reader import ScoresReader
from ..dataset.scores import open_scores
from .criteria import Chosen, SelectionCriteria, SelectionPlan, choose
from .outputs import GRAPHS_FOLDER, RECIPE_FILE, SCORES_FOLDER, SELECTION_SCHEMA, OutputFormat, SelectionWriter

# More files than that in one folder help nobody.
MAX_FILES = 20_000
_LOCK, _WORK, _REPLACED = "lock", "selection", "replaced"
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
    required_elements: Sequence[str] = (),
    excluded_elements: Sequence[str] = (),
    pareto: Sequence[str] = (),
    per_system: int | None = None,
    per_prototype: int | None = None,
    uncertainty_weight: float = 0.0,
    known: str | Path | None = None,
    formats: Sequence[str] = ("cif", "zarr"),
    store: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Choose the best structures of a screen, relaxation or hull, and write them.

    Only rows whose status is ok (unless the filter speaks of `status`) and whose ranking column is finite take part;
    how many were left out for what reason stands in the result and in recipe.json. Columns are added (see
    `derived.DerivedColumns`): chemical system, magnetic and f elements, charge neutrality and electronegativity by
    SMACT's rules, the label of the prototype, and what is new against known crystals. They may be used in the filter,
    too; they are computed for no more rows than what came through its other conditions, best first, until there are
    enough.

    With `top` the rows are in the order of their rank; without it, in that of the scores, with `rank` as a column.

    Example:
        >>> select("hull.zarr", "best", "energy_above_hull < 0.05 and n_atoms <= 20", top=100)  # doctest: +SKIP

    Args:
        scores: Dataset, a path or URL.
        out: Folder to write.
        where: Filter, in the grammar of `filters`.
        top: How many; None for all.
        by: Column to rank by, the lowest first, or the highest with a minus in front of it; the first of
            `ranking.MEASURES` if not said.
        allowed_elements: Symbols; structures of these elements alone.
        required_elements: Symbols; structures with one of them.
        excluded_elements: Symbols; structures with none of them.
        pareto: Two or more columns, each with a minus where higher is better: what nothing else beats in all of them.
            With `top`, one front after the other.
        per_system: At most so many of one chemical system, the best ones.
        per_prototype: At most so many of one prototype.
        uncertainty_weight: Standard deviations that a value is made worse by before it is ranked.
        known: Graph store of known crystals.
        formats: Of `OutputFormat`.
        store: Graph store of the scores, if it is not where they say.
        overwrite: Replace an earlier selection.
        progress: Show progress on standard error.

    Returns:
        The selected rows, opened.

    Raises:
        ConfigError: A filter, column or element that there is not, or a package that is not installed.
        StoreError: The scores or the graph store cannot be read, or nothing came through.
        OutputExistsError: The output exists, or is being written by another run.
    """
    begin = time.monotonic()
    wanted = _formats(formats)
    rows = ScoresReader(scores, store)
    criteria = SelectionCriteria(
        where=where,
        top=top,
        by=by,
        allowed_elements=allowed_elements,
        required_elements=required_elements,
        excluded_elements=excluded_elements,
        pareto=pareto,
        per_system=per_system,
        per_prototype=per_prototype,
        uncertainty_weight=uncertainty_weight,
        known=known,
    )
    plan = SelectionPlan.of(rows, criteria)
    read = [str(path) for path in (scores, known, rows.attrs.get("graph_store", {}).get("path")) if path]
    inputs = [Path(path) for path in read if "://" not in path]
    with _written(out, inputs, overwrite=overwrite) as folder:
        chosen = choose(rows, plan)
        if len(chosen.rows) == 0:
            raise StoreError(f"{scores}: nothing was selected: {_listed(chosen.left_out)}")
        if len(chosen.rows) > MAX_FILES and set(wanted) & set(_OF_FILES):
            raise ConfigError(
                f"{len(chosen.rows):,} structures are too many for files of their own; say --top, or --format "
                "extxyz,parquet,zarr"
            )
        recipe = _recipe(rows, plan, chosen, wanted)
        written = SelectionWriter(rows, plan, chosen, folder, Path(out), wanted)
        with ProgressReport("select", len(chosen.rows), enabled=progress) as bar:
            written.run(recipe, bar)
        recipe |= {"not_written": written.left_out, "seconds": round(time.monotonic() - begin, 3)}
        written.finish(recipe)
        recipe["files_sha256"] = _digests(folder)
        write_text_atomically(folder / RECIPE_FILE, json.dumps(recipe, indent=1, default=str) + "\n")
    if OutputFormat.ZARR in wanted:
        return open_scores(Path(out) / SCORES_FOLDER)
    return written.dataset(recipe)


def summary(found: xr.Dataset, path: str | Path) -> str:
    """Lines on a finished selection: counts, and what else there is to know."""
    recipe = found.attrs["selection"]
    left_out = _listed(recipe["left_out"])
    lines = [
        f"{path}: {recipe['selected']:,} of {recipe['rows']:,} structures, by {recipe['ranked_by']}"
        + (f"; left out: {left_out}" if left_out else "")
        + f"; {recipe['seconds']:.1f} s"
    ]
    for file, names in recipe["not_written"].items():
        lines.append(f"{file}: {len(names)} not written, {names[0][0]}: {names[0][1]}; recipe.json names all")
    return "\n".join([*lines, *recipe["notes"]])


def _formats(given: Sequence[str]) -> tuple[OutputFormat, ...]:
    names = [name.strip() for text in ([given] if isinstance(given, str) else given) for name in text.split(",")]
    known = [one.value for one in OutputFormat]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(f"{unknown[0] if unknown else ''!r} is no format: {', '.join(known)}")
    return tuple(OutputFormat(name) for name in dict.fromkeys(names))


def _recipe(
    scores: ScoresReader, plan: SelectionPlan, chosen: Chosen, wanted: Sequence[OutputFormat]
) -> dict[str, Any]:
    """All that was said, and what came of it."""
    known = chosen.known
    return {
        "schema": SELECTION_SCHEMA,
        "scores": {"path": str(scores.path), "store_hash": scores.hash},
        "graph_store": scores.attrs.get("graph_store"),
        "model": scores.attrs.get("model"),
        "kind": scores.attrs.get("kind", "screened"),
        "criteria": plan.criteria.record(),
        "known": None if known is None else {"path": str(known.store.path), "store_hash": known.store.store_hash},
        "formats": [str(one) for one in wanted],
        "ranked_by": plan.text,
        "rows": len(scores),
        "left_out": chosen.left_out,
        "selected": len(chosen.rows),
        "notes": [*plan.notes, *chosen.derived.notes],
        "software": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file outside the stores, which have checksums of their own."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/", maxsplit=1)[0] not in (SCORES_FOLDER, GRAPHS_FOLDER):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


@contextmanager
def _written(out: str | Path, inputs: Sequence[Path], *, overwrite: bool) -> Iterator[Path]:
    """A folder that takes its name when all is in it.

    Raises:
        OutputExistsError: The name is taken, or another run is at work.
    """
    if "://" in str(out):
        raise OutputExistsError(f"{out}: a selection is a folder of this machine; copy it from there")
    target = Path(out).resolve()
    partial = target.with_name(f"{target.name}.partial")
    check_place(target, inputs)
    _check_free(target, out, overwrite=overwrite)
    if partial.exists() and not (partial / _LOCK).exists():
        raise OutputExistsError(f"{partial}: exists and is none of ours; choose another --out")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{out}: cannot be written there ({error.strerror})") from error
    with locked(partial / _LOCK):
        _check_free(target, out, overwrite=overwrite)
        for left in (_WORK, "parts"):
            shutil.rmtree(partial / left, ignore_errors=True)  # of a run that was killed
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
        raise OutputExistsError(f"{out}: exists; choose another --out, or say --overwrite")
    recipe = target / RECIPE_FILE
    if not recipe.is_file() or SELECTION_SCHEMA not in recipe.read_text():
        raise OutputExistsError(f"{out}: exists and is no selection, so it is not overwritten")
