"""Report of a screen: one self-contained HTML page that can be read offline and printed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.atomic import write_text_atomically
from ...pipeline.errors import ConfigError, EquiscreenError, StoreError
from ...pipeline.plain_text import one_line
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.staging import check_file
from ..dataset.default_ranking import NOT_COMPARABLE
from ..dataset.paths import dataset_in, report_path
from ..dataset.reader import ScoresReader
from ..dataset.scores import open_scores
from ..label_comparison import calibration, labels_and_predictions
from . import figures
from .content import NEAR, ReportContent, read_content
from .structure_svg import picture
from .template import FOOT, HEAD, SORTING

_COLUMN_HEADINGS = {
    "energy_above_hull": "above hull, eV/atom",
    "energy_above_model_hull": "above model hull, eV/atom",
    "energy_above_joint_hull": "above hull with candidates, eV/atom",
    "energy_above_hull_std": "its standard deviation, eV/atom",
    "probability_below_hull": "probability below hull",
    "formation_energy_per_atom": "formation energy, eV/atom",
    "energy_per_atom": "energy, eV/atom",
    "max_force": "largest force, eV/angstrom",
    "volume_change": "volume change",
}


def report(
    scores: str | Path,
    out: str | Path | None = None,
    *,
    title: str | None = None,
    top: int = 50,
    store: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a report of a screen, a relaxation, a hull or a selection.

    The page shows a funnel of counts, distributions of energies and uncertainties, a periodic table of the hits, the
    best candidates with pictures, predictions against labels if the graph store has any, cost and provenance.
    Its size does not grow with the dataset, since distributions are stored as histograms.

    Example:
        >>> report("relaxed.hull.zarr")  # doctest: +SKIP
        PosixPath('relaxed.hull.report.html')

    Args:
        scores: Path or URL of the dataset, or path of a folder of results that holds it. Without a hull, the best
            candidates are those with the lowest formation energy; without one, those with the lowest energy per atom
            if all have one composition, else none.
        out: HTML file to write; by default ``S.report.html`` for ``S.zarr``.
        title: Title of the page.
        top: Number of candidates to show.
        store: Graph store of the structures, if it was moved. Without it the report has no pictures.
        overwrite: Replace an existing file.

    Returns:
        Path of the HTML file.

    Raises:
        ConfigError: plotly is not installed.
        StoreError: The dataset cannot be read, or has changed meanwhile.
        OutputExistsError: The file exists.
    """
    scores = dataset_in(scores)
    inputs = [scores] if store is None else [scores, store]
    target = check_file(report_path(scores) if out is None else out, inputs, overwrite=overwrite)
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError("a report needs plotly: pip install 'equiscreen[report]'") from error
    rows = ScoresReader(scores, store)
    content = read_content(rows, top)
    name = title or f"Screen of {Path(redact_urls(str(scores)).rstrip('/')).name}"
    sections = [
        _summary(content, name),
        _section("From the source to the best candidates", figures.funnel(content.funnel)),
        *(_section(_heading(spread.name), figures.distribution(spread)) for spread in content.distributions),
        _section(_hits_heading(content), figures.periodic_table(content.element_hits)),
        _candidates(content, rows),
        *_labels(scores, store),
        _provenance(rows.attrs),
    ]
    page = "".join((HEAD.format(title=escape(name)), f"<script>{get_plotlyjs()}</script>", *sections, SORTING, FOOT))
    rows.check_unchanged()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(target, page)
    return target


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _heading(column: str) -> str:
    text = {
        "energy_above_hull": "Energy above the hull",
        "energy_above_hull_std": "Uncertainty of the energy above the hull",
        "energy_per_atom": "Energy per atom",
        "energy_std": "Uncertainty of the energy",
    }.get(column.removesuffix("_unrelaxed"), column.replace("_", " "))
    return f"{text}, unrelaxed structures" if column.endswith("_unrelaxed") else text


def _hits_heading(content: ReportContent) -> str:
    return (
        f"Elements of the structures within {NEAR} eV/atom of the hull"
        if content.has_hull
        else "Elements of the scored structures"
    )


def _summary(content: ReportContent, title: str) -> str:
    """Return the title and a summary in words."""
    first, last = content.funnel[0], content.funnel[-1]
    sentences = [f"Of {first[1]:,} structures, {content.scored:,} have a score."]
    if content.has_hull:
        sentences.append(
            f"{content.near:,} of them are within {NEAR} eV/atom of the convex hull, and {content.below:,} are below "
            f"it; {last[1]:,} pass the last step below."
        )
        if content.value.endswith("_unrelaxed"):
            sentences.append(
                "The structures were not relaxed, so their energies are upper bounds; run equiscreen relax to lower "
                "them."
            )
        if content.lower_bound:
            sentences.append(
                "The hull consists of candidates only, so energies above hull are lower bounds; add references with "
                "equiscreen hull --references."
            )
    else:
        sentences.append(_without_hull(content))
    if content.recall:
        sentences.append(content.recall)
    text = escape(" ".join(sentences))
    return f"<h1>{escape(title)}</h1><p class='date'>{datetime.now(UTC):%Y-%m-%d}</p><p class='lead'>{text}</p>"


def _without_hull(content: ReportContent) -> str:
    """Return what the candidates are ranked by without a hull."""
    if not content.is_ranking:
        return f"There is no convex hull yet, and the candidates are not ranked: {NOT_COMPARABLE}."
    column = (
        "formation energy"
        if content.value.startswith("formation")
        else "energy per atom, since all have one composition"
    )
    return f"There is no convex hull yet: the candidates are ranked by {column}. Run equiscreen hull to add one."


def _candidates(content: ReportContent, rows: ScoresReader) -> str:
    """Return the best candidates as a sortable table."""
    best = content.best
    if len(best) == 0:
        return _section(
            "Best candidates", "<p>None.</p>" if content.is_ranking else f"<p>Not ranked: {escape(NOT_COMPARABLE)}.</p>"
        )
    try:
        pictures = [picture(structure) for structure in rows.structures(best)]
        note = ""
    except EquiscreenError as error:
        pictures, note = [""] * len(best), f"<p>No pictures: {escape(str(error))}</p>"
    names = [name for name in content.shown if name in rows.specs]
    columns = {name: rows.rows(name, best) for name in ("structure_id", "formula", "n_atoms", *names)}
    words = {name: _words(rows, name, columns[name]) for name in columns}
    within = (rows.attrs.get("hull") or {}).get("within")
    known = {**_COLUMN_HEADINGS, "probability_near_hull": f"probability of at most {within} eV/atom"}
    headings = ["", "id", "formula", "atoms", *(known.get(n.removesuffix("_unrelaxed"), n) for n in names)]
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join(
        f"<tr><td class='picture'>{drawing}</td>"
        + "".join(_cell(columns[name][place], words[name][place]) for name in columns)
        + "</tr>"
        for place, drawing in enumerate(pictures)
    )
    table = (
        f"<div class='scroll'><table class='sortable'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return _section(f"The best {len(best)}", f"{note}{table}<p class='note'>Click a heading to sort by it.</p>")


def _words(rows: ScoresReader, name: str, values: Any) -> list[str]:
    """Return values as text for a reader."""
    if "flag_values" in rows.specs[name].attrs:
        meanings = {value: word for word, value in rows.meanings(name).items()}
        return [meanings.get(int(value), "?").replace("_", " ") for value in values]
    if values.dtype.kind == "f":
        return ["" if np.isnan(value) else f"{value:.3f}" for value in values]
    return [one_line(str(value)) for value in values]


def _cell(value: Any, text: str) -> str:
    is_number = isinstance(value, (np.floating, np.integer))
    attr = f" class='number' data-value='{float(value)!r}'" if is_number else ""
    return f"<td{attr}>{escape(text)}</td>"


def _labels(scores: str | Path, store: str | Path | None) -> list[str]:
    """Return the parity plot and, for an ensemble, the calibration plot, if the graph store has labels."""
    dataset = open_scores(scores)
    out = []
    try:
        label, prediction = labels_and_predictions(dataset, store=store)
        if len(label):
            out.append(_section("Predictions beside labels", figures.parity_plot(label, prediction)))
        if len(label) and "energy_std" in dataset:
            error, spread = calibration(dataset, store=store)
            out.append(_section("Errors beside predicted uncertainties", figures.calibration_plot(error, spread)))
    except (
        ConfigError,
        StoreError,
    ) as error:  # for example a selection, or a missing store: the rest of the page is still valid
        out.append(_section("Predictions beside labels", f"<p>Not shown: {escape(str(error))}</p>"))
    return out


def _provenance(attrs: Mapping[str, Any]) -> str:
    """Return cost, models, stores and versions as a table."""
    model, graphs, found = (attrs.get(name) or {} for name in ("model", "graph_store", "hull"))
    lines: list[tuple[str, Any]] = [
        ("model", model.get("path")),
        ("SHA-256 of the model", model.get("sha256")),
        ("energies", model.get("energy_scheme")),
        ("graph store", graphs.get("path")),
        ("hash of the graph store", graphs.get("store_hash")),
        ("hash of this dataset", attrs.get("store_hash")),
        ("versions", ", ".join(f"{name} {text}" for name, text in (attrs.get("software") or {}).items())),
        ("command", attrs.get("command")),
        ("corrections", found.get("corrections")),
        ("references", ", ".join(entry["path"] for entry in found.get("references", ()))),
        ("cost of the scores", _cost(attrs.get("timing") or {})),
        ("cost of the hull", _cost(found.get("timing") or {})),
    ]
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in lines
        if value not in (None, "")
    )
    return _section("Cost and provenance", f"<table class='facts'>{body}</table>")


def _cost(timing: Mapping[str, Any]) -> str:
    parts = []
    if "core_hours" in timing:
        parts.append(f"{timing['core_hours']:.3g} core-hours")
    if "seconds" in timing:
        parts.append(f"{timing['seconds']:,.1f} s")
    if "structures_per_second" in timing:
        parts.append(f"{timing['structures_per_second']:,.1f} structures/s")
    return ", ".join(parts)
