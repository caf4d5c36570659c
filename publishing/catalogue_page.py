"""The page about a publication, `index.html`: its files and columns, the best structures, and code that reads them."""

from __future__ import annotations

from html import escape

import numpy as np

from ..pipeline.store.schema import TEXT
from ..screening.dataset.parquet import as_words
from ..screening.dataset.reader import ScoresReader, flag_meanings
from .catalogue import CATALOGUE_FILE, CHECKSUMS_FILE, GRAPHS, RANKING, REPORT_FILE, SCORES, Catalogue
from .crate_metadata import CRATE_FILE
from .html_page import html_page, html_table

_BEST, _COLUMNS = 20, 10
_HOLDS = {
    SCORES: "all columns of all structures",
    RANKING: "the ranked list, best first, in small chunks",
    GRAPHS: "the structures and their neighbour graphs",
}
_FIRST = ("rank", "structure_id", "formula", "n_atoms", "status")


def catalogue_page(catalogue: Catalogue, best: ScoresReader | None, *, report: bool) -> str:
    """Return the page as HTML.

    Args:
        catalogue: Content of the publication.
        best: The ranked list; None if there is none.
        report: Whether there is a report.
    """
    counts = ", ".join(
        f"{count:,} {word.replace('_', ' ')}" for word, count in catalogue.status_counts.items() if count
    )
    sections = [
        f"<p>{catalogue.rows:,} structures{escape(f' ({counts})' if counts else '')}. Published on "
        f"{escape(catalogue.created[:10])} with {escape(catalogue.software)}.</p>"
    ]
    if report:
        sections.append(f'<p><a href="{REPORT_FILE}">Report with pictures and charts</a></p>')
    if best is not None:
        sections.append(f"<h2>The best {min(_BEST, len(best))}</h2><p>{escape(catalogue.ranked_by)}</p>{_table(best)}")
    sections.append(f"<h2>Files</h2>{_files(catalogue)}")
    sections.append(f"<h2>Read it in Python</h2><pre>{escape(_code(catalogue))}</pre>")
    columns = [(one.name, one.units, one.description) for one in catalogue.columns]
    sections.append(f"<h2>Columns</h2>{html_table(('column', 'unit', 'description'), columns)}")
    return html_page(catalogue.title, "".join(sections))


def _table(best: ScoresReader) -> str:
    """Return the first rows of the ranked list as an HTML table, in the columns that matter most."""
    numbers = [name for name, spec in best.specs.items() if spec.dtype == "float64"]
    ranked = [name for name in numbers if name in str(best.attrs.get("ranked_by", ""))]
    names = [*_FIRST, *dict.fromkeys([*ranked, *numbers])][:_COLUMNS]
    stop = min(_BEST, len(best))
    columns = []
    for name in names:
        values = best.column(name, 0, stop)
        meanings = flag_meanings(best.specs[name].attrs)
        if meanings:
            values = as_words(values, meanings)
        columns.append([str(one) for one in values] if best.specs[name].dtype == TEXT else np.asarray(values).tolist())
    units = [str(best.specs[name].attrs.get("units", "")).removeprefix("1") for name in names]
    headings = [f"{name} ({unit})" if unit else name for name, unit in zip(names, units, strict=True)]
    return html_table(headings, zip(*columns, strict=True))


def _files(catalogue: Catalogue) -> str:
    rows: list[tuple[object, ...]] = [
        (name, _HOLDS[name], _size(store.size), store.store_hash[:16]) for name, store in catalogue.stores.items()
    ]
    files = {
        CATALOGUE_FILE: "this page for programs",
        CRATE_FILE: "this page for archives, an RO-Crate",
        CHECKSUMS_FILE: "SHA-256 of all other files except the catalogue, for sha256sum --check",
    }
    rows += [(name, holds, "", "") for name, holds in files.items()]
    links = [*(None for _ in catalogue.stores), *files]
    return html_table(("file", "holds", "size", "hash of its content"), rows, links)


def _size(size: int) -> str:
    """Return the size of a store with its unit; the space in it does not break."""
    return f"{size / 1e6:,.1f}\N{NO-BREAK SPACE}MB" if size >= 1e5 else f"{size / 1e3:,.1f}\N{NO-BREAK SPACE}kB"


def _code(catalogue: Catalogue) -> str:
    lines = ["import xarray", ""]
    if RANKING in catalogue.stores:
        lines += [
            f'ranking = xarray.open_zarr("ADDRESS OF THIS FOLDER/{RANKING}", chunks=None)',
            "print(ranking.isel(structure=slice(100)).to_dataframe())",
        ]
    lines.append(f'scores = xarray.open_zarr("ADDRESS OF THIS FOLDER/{SCORES}")')
    return "\n".join(lines)
