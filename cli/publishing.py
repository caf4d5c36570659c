"""Commands that share results: `publish`, `crate` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MovedStore, Overwrite
from .terminal.account import account, shows_progress, tell
from .terminal.interruption import resumable

_SCORES_HELP = (
    "Scores written by `equiscreen screen`, `relax`, `hull` or `select`; or a folder written by `equiscreen select`, "
    "`cascade` or `rank`."
)


_Scores = Annotated[str, typer.Argument(metavar="S.zarr", help=f"{_SCORES_HELP} A dataset may be a URL.")]
_Title = Annotated[str | None, typer.Option(help="Title of the page.", show_default="Screen of S.zarr")]
_License = Annotated[
    str | None,
    typer.Option("--license", metavar="URL", help="URL of the licence of the data.", show_default="not stated"),
]
_Author = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Person who made the data. Repeatable.", show_default="not stated"),
]
_Publisher = Annotated[
    str, typer.Option(metavar="NAME", help="Organisation that publishes the data.", show_default="not stated")
]
_By = Annotated[
    str | None,
    typer.Option(
        help="Column to rank by, lowest first; -COLUMN ranks highest first.",
        show_default="energy_above_hull, else formation_energy_per_atom, else energy_per_atom if all compositions "
        "are equal",
    ),
]
_Graphs = Annotated[
    bool, typer.Option("--graphs/--no-graphs", help="Include the graph store, which holds the structures.")
]
_Report = Annotated[bool, typer.Option("--report/--no-report", help="Include a report of the best 1,000 candidates.")]


def publish(
    scores: _Scores,
    place: Annotated[
        str,
        typer.Argument(
            metavar="URL|FOLDER",
            help="Where to publish: s3://BUCKET/NAME, or a local folder, such as one that a web server serves.",
        ),
    ],
    title: _Title = None,
    license_url: _License = None,
    author: _Author = None,
    publisher: _Publisher = "",
    by: _By = None,
    graphs: _Graphs = True,
    report: _Report = True,
    store: MovedStore = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier publication.")] = False,
) -> None:
    """Publish scores, structures and a report as static files.

    The folder holds scores.zarr, the ranked list ranking.zarr (in small chunks, so that its first page loads quickly),
    the graph store scores.graphs.zarr, report.html, a page about them (index.html), a catalogue for programs
    (catalogue.json), metadata for archives (an RO-Crate) and the SHA-256 of all other files except the catalogue
    (checksums.sha256). Any web server or S3 bucket can serve it; open its stores with xarray.open_zarr. Attributes
    contain no local paths and no credentials from URLs. Object stores need `pip install 'equiscreen[remote]'`. An
    interrupted run resumes when you run the same command again.

    \b
    Example:
        equiscreen publish relaxed.hull.zarr s3://my-bucket/alloys
    """
    from ..publishing import publication

    with resumable():
        made = publication.publish(
            scores,
            place,
            title=title,
            license_url=license_url,
            authors=author or (),
            publisher=publisher,
            by=by,
            graphs=graphs,
            report=report,
            store=store,
            overwrite=overwrite,
            progress=shows_progress(),
        )
    account(made, made)


def crate(
    scores: _Scores,
    out: Annotated[Path | None, typer.Option(help="ZIP file to write.", show_default="S.crate.zip")] = None,
    title: _Title = None,
    license_url: _License = None,
    author: _Author = None,
    publisher: _Publisher = "",
    by: _By = None,
    graphs: _Graphs = True,
    report: _Report = True,
    store: MovedStore = None,
    overwrite: Overwrite = False,
) -> None:
    """Write scores as an RO-Crate, a ZIP file for archives of research data.

    The file holds what `equiscreen publish` writes, with metadata that follow RO-Crate 1.1 and the profile Process Run
    Crate 0.5: who made the data, with which command, model and version, and under which licence. An interrupted run
    resumes when you run the same command again.

    \b
    Example:
        equiscreen crate relaxed.hull.zarr --author "Ada Lovelace" \\
            --license https://creativecommons.org/licenses/by/4.0/
    """
    from ..publishing import crate_archive

    with resumable():
        made = crate_archive.crate(
            scores,
            out,
            title=title,
            license_url=license_url,
            authors=author or (),
            publisher=publisher,
            by=by,
            graphs=graphs,
            report=report,
            store=store,
            overwrite=overwrite,
            progress=shows_progress(),
        )
    account(made, made)


def serve(
    scores: Annotated[
        Path,
        typer.Argument(
            metavar="S.zarr|FOLDER", help=f"{_SCORES_HELP} A folder written by `equiscreen publish` works too."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines connect, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free port.")] = 8000,
    title: Annotated[str | None, typer.Option(help="Title of the pages.", show_default="Screen of S.zarr")] = None,
    store: MovedStore = None,
) -> None:
    """Serve scores over HTTP: queries, structures and the Zarr store.

    Routes: / is a page to search and browse the structures, /query returns rows as JSON, CSV or Arrow,
    /structures/ROW.cif returns a structure, /zarr is the store for xarray.open_zarr, /docs lists all parameters, and
    /openapi.json describes them for programs. An answer has at most 10,000 rows. Without --host, only this machine can
    connect; there are no passwords. This command needs `pip install 'equiscreen[serve]'`. Ctrl-C stops the server.

    \b
    Example:
        equiscreen serve relaxed.hull.zarr
    """
    from ..publishing.serving import server

    server.serve(scores, host=host, port=port, title=title, store=store, announce=tell)
