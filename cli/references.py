"""The verb `references`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .interruption import resumable
from .options import Overwrite, Scheme


def references(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT...",
            help="Files of pymatgen entries (.json, .json.gz), tables (.csv, .parquet), equiscreen datasets (.zarr), "
            "mp (Materials Project, through mp-api and MP_API_KEY; untried), optimade:PROVIDER (alexandria, "
            "alexandria-pbesol, mp, oqmd, jarvis; all untried), optimade:URL, or optimade:PROVIDER@URL for a mirror.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Table to write (.parquet).")],
    systems: Annotated[
        str | None,
        typer.Option(metavar="Li-Fe-O,...", help="Chemical systems; only phases within one of them are taken."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Take the chemical systems from candidates: a scores dataset, whose energy scheme counts too, a graph "
            "store, or structure files.",
        ),
    ] = None,
    scheme: Scheme = None,
    overwrite: Overwrite = False,
) -> None:
    """Fetch reference phases into a table for `equiscreen hull`.

    Only energies that can be compared with those of the candidates are taken: the energy scheme is that of the
    --candidates if these are scores, else --scheme, else mp-uncorrected. What is left out is counted by reason. The
    table keeps where each phase comes from, its functional and its structure, and an account: run types, phases per
    chemical system, and what is missing. An interrupted download resumes when you run the same command again; files are
    read anew. Servers need `pip install 'equiscreen[remote]'`. Providers marked untried could not be asked when this
    was written.

    \b
    Example:
        equiscreen references entries.json.gz --systems Li-Fe-O --out refs.parquet
    """
    from ..campaigns.references.fetch import fetch_references
    from ..campaigns.references.systems import systems_of, systems_of_text
    from ..pipeline.energy_schemes import UNCORRECTED

    chosen = None if systems is None else systems_of_text(systems)
    given = None
    if candidates is not None:
        found, given = systems_of(candidates)
        chosen = found | (chosen or set())
    with resumable():
        account = fetch_references(
            what, chosen, out, scheme=given or scheme or UNCORRECTED, assumed=scheme, overwrite=overwrite, progress=True
        )
    print(account.summary(out))
