"""Report of a screen: one self-contained HTML page that can be read offline and printed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ...pipeline.atomic import write_text_atomically
from ...pipeline.errors import ConfigError, OutputExistsError, StoreError
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.staging import check_file
from ..dataset.default_ranking import ENERGY_PER_ATOM, NOT_COMPARABLE
from ..dataset.paths import dataset_in, report_path
from ..dataset.reader import ScoresReader
from ..dataset.scores import UNRELAXED
from . import figures
from .candidate_table import CandidateTable, candidate_table
from .content import NEAR, ReportContent, read_content
from .hull_diagrams import hull_diagrams
from .labelled_energies import LabelledEnergies, labelled_energies
from .page import BEGINS, data, page, picture_file, section
from .phonon_bands import PhononBands, phonon_bands
from .printed_figures import write_figures
from .structure_svg import picture

# Default number of rows of the table, and number of cards with pictures above the table.
TOP = 10_000
_CARDS = 12
_FILTERS = (
    "<div class='filters'><input id='filter' type='search' aria-label='Filter candidates' "
    "placeholder='Filter: Li O -F, or any text'><button id='csv' type='button'>Download CSV</button></div>"
)
_DETAIL = (
    "<aside class='detail' id='detail' hidden><h3></h3><div class='viewer'></div>"
    "<div class='buttons'><button class='structure' type='button'></button>"
    "<button id='close' type='button'>Close</button></div><table class='facts'><tbody></tbody></table></aside>"
)


def report(
    scores: str | Path,
    out: str | Path | None = None,
    *,
    title: str | None = None,
    top: int = TOP,
    by: str | None = None,
    store: str | Path | None = None,
    selection: str | Path | None = None,
    charts: str | Path | None = None,
    pictures: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a report of a screen, a relaxation, a hull or a selection.

    The page shows pictures of the best candidates, and a table of candidates that can be sorted and filtered. The
    structures of the best 200 can be rotated and downloaded, and the phonon bands of the best few are shown if
    `compute_properties` has computed them. Figures show the convex hulls of binary and ternary systems, the counts of
    structures at each step, the distributions of energies and uncertainties, and a periodic table of the hits; if the
    graph store has labels, predictions are plotted against them. The page also states cost and provenance, and needs no
    internet connection. Candidates that are the same crystal share one row of the table.

    Example:
        >>> from equiscreen.screening import report
        >>> report("relaxed.hull.zarr", "report.html", title="Alloys of Al and Cu").name
        'report.html'

    Args:
        scores: Path or URL of the dataset, or path of a folder of results that holds it. Without a hull, candidates are
            ranked by formation energy; without formation energies, by energy per atom if all have the same composition;
            otherwise they are not ranked.
        out: HTML file to write; by default ``S.report.html`` for ``S.zarr``, in the current folder if that is a URL.
        title: Title of the page.
        top: Largest number of candidates in the table.
        by: Column to rank by, lowest first; by default the energy above hull or, without a hull, the formation energy.
        store: Graph store of the structures, if it was moved. If the store cannot be read, the report has no
            structures.
        selection: Folder of a selection from this dataset; the table then also shows which of its structures are known,
            and which are charge-neutral.
        charts: Folder for the charts as files for a publication: PNG, SVG and, with the numbers shown, CSV.
        pictures: PNG files to show on the page, by heading, such as learning curves; at most 2 MB each.
        overwrite: Replace existing files.

    Returns:
        Path of the HTML file.

    Raises:
        ConfigError: The dataset has no such column; the selection was made from another dataset; a picture cannot be
            used; or scipy, which diagrams of ternary hulls need, or matplotlib, which charts as files need, is not
            installed.
        StoreError: The dataset or the selection cannot be read, or changed while it was read; or the dataset has no
            energies.
        OutputExistsError: A file exists, or cannot be written.
    """
    scores = dataset_in(scores)
    chosen = None if selection is None else dataset_in(selection)
    inputs = [scores, *(one for one in (store, chosen) if one is not None)]
    target = check_file(
        report_path(scores) if out is None else out, inputs, overwrite=overwrite, begins=BEGINS.encode()
    )
    if charts is not None and "://" in str(charts):
        raise OutputExistsError(f"{charts}: charts can be written only to a local folder; choose one, then copy it")
    rows = ScoresReader(scores, store)
    content = read_content(rows, top, by)
    name = title or f"Screen of {Path(redact_urls(str(scores)).rstrip('/')).name}"
    selected = None if chosen is None else _selection(chosen, rows)
    table = candidate_table(rows, content.best, content.value, selected)
    diagrams = hull_diagrams(table, (rows.attrs.get("hull") or {}).get("phases") or {})
    energies, reason = None, ""
    try:
        energies = labelled_energies(scores, store)
    except (ConfigError, StoreError) as error:  # a selection, or a missing store; the rest of the page is still valid
        reason = str(error)
    sections = [
        _summary(content, name, rows.attrs),
        *_candidates(content, table),
        *_bands(table, phonon_bands(rows, table)),
        *_hulls(diagrams),
        section("From the source to the best candidates", figures.funnel(content.funnel) + _losses(content)),
        *(section(_heading(spread.name), figures.distribution(spread)) for spread in content.distributions),
        section(_hits_heading(content), figures.periodic_table(content.element_hits)),
        *_labels(energies, reason),
        *(picture_file(heading, path) for heading, path in (pictures or {}).items()),
        _provenance(rows.attrs),
    ]
    rows.check_unchanged()
    if selected is not None:
        selected.check_unchanged()
    if charts is not None:
        write_figures(Path(charts), content, diagrams, energies, [*inputs, target], overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(target, page(name, sections))
    return target


def _selection(path: str | Path, rows: ScoresReader) -> ScoresReader:
    """Open a selection, which must have been made from the dataset of the report.

    Raises:
        ConfigError: The folder was selected from another dataset, or is not a selection.
    """
    found = ScoresReader(path)
    if "selection" not in found.attrs:
        raise ConfigError(f"{path} is not a selection; choose a folder that `select` wrote from {rows.path}")
    if found.attrs["selection"]["scores"]["store_hash"] != rows.hash:
        raise ConfigError(
            f"{path} is a selection from another dataset; choose a folder that `select` wrote from {rows.path}"
        )
    return found


def _heading(column: str) -> str:
    text = {
        "energy_above_hull": "Energy above the hull",
        "energy_above_hull_std": "Uncertainty of the energy above the hull",
        "energy_per_atom": "Energy per atom",
        "energy_std": "Uncertainty of the energy",
    }.get(column.removesuffix(UNRELAXED), column.replace("_", " "))
    return f"{text}, unrelaxed structures" if column.endswith(UNRELAXED) else text


def _hits_heading(content: ReportContent) -> str:
    return (
        f"Elements of the structures within {NEAR} eV/atom of the hull"
        if content.has_hull
        else "Elements of the scored structures"
    )


def _summary(content: ReportContent, title: str, attrs: Mapping[str, Any]) -> str:
    """Return the title and a summary in words."""
    sentences = [f"Of {content.funnel[0][1]:,} structures, {content.scored:,} have a score."]
    if content.has_hull:
        sentences.append(
            f"{content.near:,} of them are within {NEAR} eV/atom of the convex hull; {content.below:,} are below it."
        )
        if content.value.endswith(UNRELAXED):
            sentences.append(
                "The structures were not relaxed, so their energies are upper bounds; run equiscreen relax to lower "
                "them."
            )
        if content.lower_bound:
            sentences.append(
                "The hull consists only of candidates and elements, so energies above hull are lower bounds; add "
                "references with equiscreen hull --references."
            )
    else:
        sentences.append(_without_hull(content, has_phases="hull" in attrs))
    if content.recall:
        sentences.append(content.recall)
    text = escape(" ".join(sentences))
    return f"<h1>{escape(title)}</h1><p class='date'>{datetime.now(UTC):%Y-%m-%d}</p><p class='lead'>{text}</p>"


def _without_hull(content: ReportContent, *, has_phases: bool) -> str:
    """Return what the candidates are ranked by if not by the energy above hull.

    Args:
        content: Content of the report.
        has_phases: Whether the dataset nevertheless has energies above hull.
    """
    if not content.is_ranking:
        return f"There is no convex hull yet, and the candidates are not ranked: {NOT_COMPARABLE}."
    if content.value == ENERGY_PER_ATOM and content.by_default:
        column = "energy per atom, since all have the same composition"
    else:
        column = content.value.removesuffix(UNRELAXED).removesuffix("_per_atom").replace("_", " ")
    ranked = f"The candidates are ranked by {column}."
    if has_phases and content.lower_bound:
        return f"{ranked} No references were given, so it is unknown which candidates are stable."
    return ranked if has_phases else f"{ranked} There is no convex hull yet; run equiscreen hull to add one."


def _candidates(content: ReportContent, table: CandidateTable) -> list[str]:
    """Return the best candidates as cards with pictures, and all candidates as a table."""
    if len(table.rows) == 0:
        text = "None." if content.is_ranking else f"Not ranked: {escape(NOT_COMPARABLE)}."
        return [section("Candidates", f"<p>{text}</p>")]
    best = [place for place in table.distinct[:_CARDS].tolist() if place in table.structures]
    cards = "".join(_card(content, table, place) for place in best)
    found = [section("The best candidates", f"<div class='best'>{cards}</div>")] if cards else []
    folded = len(table.rows) - len(table.distinct)
    notes = [
        f"The best {len(table.rows):,} of {content.scored:,}." if len(table.rows) < content.scored else "",
        f"Duplicates, folded below the crystal that they repeat: {folded:,}." if folded else "",
        "Click a row to see its structure, or a heading to sort.",
        escape(table.note),
    ]
    body = (
        f"<p class='note'>{' '.join(filter(None, notes))}</p>{_FILTERS}"
        f"<div class='explorer'><div id='candidates'></div>{_DETAIL}</div>{data('candidates-data', table.as_json())}"
    )
    return [*found, section("All candidates", body)]


def _card(content: ReportContent, table: CandidateTable, place: int) -> str:
    """Return the picture of a candidate with the numbers that matter most."""
    column = next(one for one in table.columns if one.name == content.value)
    value = table.values[content.value][place]
    group = table.values.get("space_group", [None] * len(table.rows))[place]
    known = table.values.get("novelty", [None] * len(table.rows))[place]
    facts = [f"{value:.{column.decimals}f} {column.unit} {column.heading}", group, known]
    lines = "".join(f"<small>{escape(str(fact))}</small>" for fact in facts if fact)
    return (
        f"<button class='card' data-place='{place}'>{picture(table.structures[place])}"
        f"<h3>{place + 1}. {escape(str(table.values['formula'][place]))}</h3>{lines}</button>"
    )


def _hulls(diagrams: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return diagrams of the hull in systems of two or three elements."""
    return [section("Convex hulls", figures.hulls(diagrams))] if diagrams else []


def _bands(table: CandidateTable, found: Mapping[int, PhononBands]) -> list[str]:
    """Return the phonon bands of the best candidates, where they are known."""
    if not found:
        return []
    drawn = "".join(
        f"<div><h3>{place + 1}. {escape(str(table.values['formula'][place]))}</h3>"
        f"{figures.bands(f'bands-{place}', one)}</div>"
        for place, one in found.items()
    )
    note = "<p class='note'>Negative frequencies denote imaginary modes, along which a crystal is unstable.</p>"
    return [section("Phonons of the best candidates", f"<div class='figures'>{drawn}</div>{note}")]


def _losses(content: ReportContent) -> str:
    """Return a table of the reasons why structures are not ranked."""
    if not content.losses:
        return ""
    body = "".join(f"<tr><th>{escape(reason)}</th><td>{count:,}</td></tr>" for reason, count in content.losses)
    return f"<table class='facts losses'>{body}</table>"


def _labels(energies: LabelledEnergies | None, reason: str) -> list[str]:
    """Return the parity plot and, for an ensemble, the calibration plot.

    Args:
        energies: Energies with labels; None if there are none.
        reason: Why the labels could not be read; empty if they were.
    """
    if energies is None:
        return [section("Predictions against labels", f"<p>Not shown: {escape(reason)}</p>")] if reason else []
    found = [section("Predictions against labels", figures.parity_plot(energies.label, energies.prediction))]
    if energies.calibration is not None:
        plot = figures.calibration_plot(*energies.calibration)
        found.append(section("Errors against predicted uncertainties", plot))
    return found


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
    return section("Cost and provenance", f"<table class='facts'>{body}</table>")


def _cost(timing: Mapping[str, Any]) -> str:
    parts = []
    if "core_hours" in timing:
        parts.append(f"{timing['core_hours']:.3g} core-hours")
    if "seconds" in timing:
        parts.append(f"{timing['seconds']:,.1f} s")
    if "structures_per_second" in timing:
        parts.append(f"{timing['structures_per_second']:,.1f} structures/s")
    return ", ".join(parts)
