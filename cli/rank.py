"""The verb `rank`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .interruption import resumable
from .options import Device, Limit, References, Scheduler, Scheme


def rank(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Structure files of any kind that `equiscreen featurize` reads, a graph store, or one campaign file "
            "(.yaml) that holds all settings.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(help="Published weights by name, or an ONNX file, checkpoint or run folder."),
    ] = "7net-0",
    references: References = None,
    out: Annotated[Path, typer.Option(help="Folder to write; run the same command again to resume in it.")] = Path(
        "results"
    ),
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax the structures, or score them as they are.")
    ] = True,
    where: Annotated[
        str | None, typer.Option(help="Filter expression, as for `equiscreen select --where`.", show_default="all")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of best structures to write.")] = 100,
    scheme: Scheme = None,
    limit: Limit = None,
    device: Device = "cpu",
    scheduler: Scheduler = None,
    save_config: Annotated[
        Path | None,
        typer.Option(help="Also write the settings to this campaign file.", show_default="OUT/campaign.yaml only"),
    ] = None,
) -> None:
    """Rank crystals: the whole job in one command.

    The structures become graphs, are relaxed with the model, and get their formation energies and, with --references,
    their energies above the convex hull. The best are printed, and written as CIF files and as a table; OUT/report.html
    shows all of it. An interrupted campaign resumes when you run the same command again.

    \b
    Example:
        equiscreen rank candidates/*.cif --references entries.json.gz
    """
    from ..campaigns.ranking import run
    from ..campaigns.settings import SUFFIXES, RankSettings
    from ..screening.dataset.ranked_table import RankedTable
    from .options import tell

    if len(sources) == 1 and sources[0].endswith(SUFFIXES):
        settings = RankSettings.load(sources[0])
    else:
        settings = RankSettings.of(
            sources=sources,
            model=model,
            references=references or (),
            scheme=scheme,
            relax=relax,
            where=where,
            top=top,
            limit=limit,
            device=device,
        )
    if save_config is not None:
        settings.save(save_config)
    with resumable():
        found = run(settings, out, scheduler=scheduler, progress=True, note=tell)
    print(RankedTable(found).text())
    print(f"{out}: report.html is the report, and best holds the {found.sizes['structure']:,} best structures")
