"""Commands that share results: `publish` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MovedStore
from .terminal.account import account, shows_progress, tell
from .terminal.interruption import resumable

_SCORES_HELP = (
    "Scores written by `equiscreen screen`, `relax`, `hull` or `select`; or a folder written by `equiscreen select`, "
    "`cascade` or `rank`."
)


def publish(
    scores: Annotated[str, typer.Argument(metavar="S.zarr", help=f"{_SCORES_HELP} A dataset may be a URL.")],
    place: Annotated[
        str,
        typer.Argument(
            metavar="URL|FOLDER",
            help="Where to publish: s3://BUCKET/NAME, or a local folder, such as one that a web server serves.",
        ),
    ],
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default="Screen of S.zarr")] = None,
    license_url: Annotated[
        str | None,
        typer.Option("--license", metavar="URL", help="URL of the licence of the data.", show_default="not stated"),
    ] = None,
    author: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Person who made the data. Repeatable.", show_default="not stated"),
    ] = None,
    publisher: Annotated[
        str, typer.Option(metavar="NAME", help="Organisation that publishes the data.", show_default="not stated")
    ] = "",
    by: Annotated[
        str | None,
        typer.Option(
            help="Column to rank by, lowest first; -COLUMN ranks highest first.",
            show_default="energy_above_hull, else formation_energy_per_atom, else energy_per_atom if all compositions "
            "are equal",
        ),
    ] = None,
    graphs: Annotated[
        bool, typer.Option("--graphs/--no-graphs", help="Publish the graph store, which holds the structures.")
    ] = True,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write a report of the best 1,000 candidates.")
    ] = True,
    store: MovedStore = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier publication.")] = False,
) -> None:
    """Publish scores, structures and a report as static files.

    The folder holds scores.zarr, the ranked list ranking.zarr (in small chunks, so that its first page loads quickly),
    the graph store scores.graphs.zarr, report.html, a page about them (index.html), a catalogue for programs
    (catalogue.json), metadata for archives (an RO-Crate) and the SHA-256 of every file (checksums.sha256). Any web
    server or S3 bucket can serve it; open its stores with xarray.open_zarr. Attributes contain no local paths and no
    credentials from URLs. Object stores need `pip install 'equiscreen[remote]'`. An interrupted run resumes when you
    run the same command again.

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


def serve(
    scores: Annotated[
        Path,
        typer.Argument(
            metavar="S.zarr|FOLDER", help=f"{_SCORES_HELP} A folder written by `equiscreen publish` works too."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8000,
    title: Annotated[str | None, typer.Option(help="Title of the pages.", show_default="Screen of S.zarr")] = None,
    store: MovedStore = None,
) -> None:
    """Serve scores over HTTP: queries, structures and the Zarr store.

    Routes: / is the page, /query returns rows as JSON, CSV or Arrow, /structures/ROW.cif a structure, /zarr the store
    for xarray.open_zarr, /docs lists all parameters, and /openapi.json describes them for programs. An answer has at
    most 10,000 rows. Without --host, only this machine can connect; there are no passwords. This command needs `pip
    install 'equiscreen[serve]'`. Ctrl-C stops the server.

    \b
    Example:
        equiscreen serve relaxed.hull.zarr
    """
    from ..publishing.serving import server

    server.serve(scores, host=host, port=port, title=title, store=store, announce=tell)
