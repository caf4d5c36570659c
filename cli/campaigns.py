"""The commands for whole campaigns: `rank`, `references` and `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..campaigns.distillation.settings import HoldOutBy
from .models import MODEL_HELP, onnx_file
from .options import (
    AllowMixedDevices,
    Device,
    Dispersion,
    Estimate,
    Limit,
    Overwrite,
    References,
    Scheduler,
    Scheme,
    Within,
)
from .terminal.account import account, shows_progress, tell
from .terminal.interruption import resumable


def rank(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Structure files in any format that `equiscreen featurize` reads, a graph store, or a single campaign "
            "file (.yaml) with all settings.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="Name of published weights (`equiscreen models` lists them), or an ONNX file, checkpoint or run "
            "folder."
        ),
    ] = "7net-0",
    references: References = None,
    dispersion: Dispersion = "none",
    out: Annotated[Path, typer.Option(help="Folder to write; to resume, run the same command again.")] = Path(
        "results"
    ),
    estimate: Estimate = False,
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax the structures, or score them without relaxation.")
    ] = True,
    where: Annotated[
        str | None,
        typer.Option(
            help="Select only structures that meet this filter expression; see `equiscreen select --help`.",
            show_default="all",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of best structures to write.")] = 100,
    relax_references: Annotated[
        bool,
        typer.Option(
            "--relax-references",
            help="Also relax the structures of --references with the model, and report the energy above the hull of "
            "these relaxed references, with all energies computed by the model. With --dispersion, only this hull is "
            "computed.",
        ),
    ] = False,
    within: Within = 0.05,
    scheme: Scheme = None,
    limit: Limit = None,
    device: Device = "cpu",
    allow_mixed_devices: AllowMixedDevices = False,
    scheduler: Scheduler = None,
    overwrite: Annotated[bool, typer.Option(help="Delete the campaign in --out and start again.")] = False,
    save_config: Annotated[
        Path | None,
        typer.Option(help="Also write the settings to this campaign file.", show_default="only campaign.yaml in --out"),
    ] = None,
) -> None:
    """Rank crystals: the whole job in one command.

    The structures are converted to graphs and relaxed with the model, and their formation energies and energies above
    the convex hull are computed. They are ranked by energy above hull with --references, otherwise by formation energy.
    The ten best structures are printed. The folder `best` in --out holds the best --top structures as CIF files and as
    a table (ranked.csv); report.html in --out is a report on the whole campaign. An interrupted campaign resumes when
    you run the same command again. `pip install 'equiscreen[rank]'` installs everything this command needs.

    \b
    Example:
        equiscreen rank candidates/*.cif --references entries.json.gz
    """
    from ..campaigns.estimate import estimate as campaign_cost
    from ..campaigns.ranking import run
    from ..campaigns.settings import SUFFIXES, RankSettings
    from ..screening.dataset.ranked_table import RankedTable

    files = [source for source in sources if source.endswith(SUFFIXES)]
    if files:
        _check_alone(files[0], sources, ctx)
        settings = RankSettings.load(files[0])
    else:
        settings = RankSettings.of(
            sources=sources,
            model=model,
            dispersion=dispersion,
            references=references or (),
            scheme=scheme,
            relax_references=relax_references,
            within=within,
            relax=relax,
            where=where,
            top=top,
            limit=limit,
            device=device,
        )
    if save_config is not None:
        settings.save(save_config, overwrite=False)
    if estimate:
        account(campaign_cost(settings, progress=shows_progress(), note=tell))
        return
    with resumable():
        found = run(
            settings,
            out,
            scheduler=scheduler,
            allow_mixed_devices=allow_mixed_devices,
            overwrite=overwrite,
            progress=shows_progress(),
            note=tell,
        )
    size = found.sizes["structure"]
    best = f"{size:,} best structures" if size > 1 else "best structure"
    best = f"{out}: the report is report.html; the folder best holds the {best}"
    account(f"{RankedTable(found).text()}\n{best}", found, path=out)


def _check_alone(file: str, sources: list[str], ctx: typer.Context) -> None:
    """Check that no sources or settings are given in addition to a campaign file.

    Raises:
        ConfigError: There are other sources, or options that are settings of a campaign.
    """
    from ..campaigns.settings import RankSettings
    from ..pipeline.errors import ConfigError

    others = [source for source in sources if source != file]
    if others:
        raise ConfigError(
            f"{file}: a campaign file must be the only source, but {others[0]} is given too; list structure files "
            "under its `sources:`"
        )
    options = [
        f"--{name.replace('_', '-')}"
        for name in RankSettings.model_fields
        if name != "sources" and getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if options:
        raise ConfigError(f"{file}: a campaign file holds all settings; set {', '.join(options)} in it instead")


def references(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="Where to get references: files of pymatgen entries (.json, .json.gz), tables (.csv, .csv.gz, "
            ".parquet), scores datasets of relaxed structures (.zarr), mp (the Materials Project, through the package "
            "mp-api, with your API key in the environment variable MP_API_KEY; untested), optimade:PROVIDER "
            "(alexandria, alexandria-pbesol, mp, oqmd, jarvis; all untested), optimade:URL, or optimade:PROVIDER@URL "
            "for a mirror.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Table to write (.parquet).")],
    systems: Annotated[
        str | None,
        typer.Option(
            metavar="Li-Fe-O,...",
            help="Chemical systems, separated by commas; only phases within one of them are kept.",
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Use the chemical systems of these candidates: a scores dataset (its energy scheme is used too), a "
            "graph store, or structure files.",
        ),
    ] = None,
    scheme: Scheme = None,
    overwrite: Overwrite = False,
) -> None:
    """Fetch reference phases into a table for `equiscreen hull`.

    Only energies that can be compared with those of the candidates are kept. The candidates' energy scheme is read from
    the scores given as --candidates; otherwise it is --scheme, or mp-uncorrected by default. References that are left
    out are counted by reason. The table records the source, functional and structure of each phase, and a summary: run
    types, phases per chemical system, and missing elements and systems. An interrupted download resumes when you run
    the same command again; local files are read again. With the schemes mp-uncorrected (the default) and
    mp2020-corrected, and for MatPES entries, this command needs `pip install 'equiscreen[hull]'`; OPTIMADE servers also
    need `pip install 'equiscreen[remote]'`, and mp needs `pip install mp-api`. Sources marked untested could not be
    reached when this page was written.

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
        fetched = fetch_references(
            what,
            chosen,
            out,
            scheme=given or scheme or UNCORRECTED,
            assumed=scheme,
            overwrite=overwrite,
            progress=shows_progress(),
        )
    account(fetched.summary(out), fetched, path=out)


def distill(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Crystals of the chemistry that you want to screen: a graph store (G.zarr), structure files in any "
            "format that `equiscreen featurize` reads, or a scores dataset, whose structures are used.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write; the model is student.onnx in it. To resume, run the same command again.",
        ),
    ],
    teacher: Annotated[str, typer.Option(help=f"Model that labels the structures. {MODEL_HELP}")] = "7net-0",
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="small|medium|large",
            help="Preset of the student's network; docs/training.md lists the cost of each.",
            show_default="small, or the preset in --config",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with further settings of the student, as for `equiscreen train --config`; it must not set "
            "`training.split`.",
            show_default="all keys have their default values",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of epochs.", show_default="200, or the value in --config")
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(
            help="Cutoff of the student, angstrom; at most the cutoff of the graph store. A smaller cutoff makes a "
            "faster, less accurate student.",
            show_default="the teacher's",
        ),
    ] = None,
    crystals: Annotated[
        int | None,
        typer.Option(min=1, help="Use only this many crystals (3 or more), chosen at random.", show_default="all"),
    ] = None,
    variants: Annotated[int, typer.Option(min=0, help="Number of rattled and strained copies of each crystal.")] = 8,
    rattle: Annotated[
        float, typer.Option(help="Largest standard deviation of the displacements in a copy, angstrom.")
    ] = 0.1,
    strain: Annotated[float, typer.Option(help="Largest component of the strain of the cell of a copy.")] = 0.05,
    frames: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also relax each crystal with the teacher for up to 25 steps, and label this many of the steps; "
            "worthwhile if the candidates are far from their energy minima.",
        ),
    ] = 0,
    hold_out: Annotated[
        float,
        typer.Option(
            help="Fraction of the structures to hold out for the comparison; a crystal is held out with all its "
            "copies. An equal fraction is held out to choose the best epoch."
        ),
    ] = 0.1,
    hold_out_by: Annotated[
        HoldOutBy,
        typer.Option(
            help="Property that no held-out crystal shares with a training crystal: its `composition`, or only its "
            "`structure`, which suits polymorphs of a few compositions."
        ),
    ] = HoldOutBy.COMPOSITION,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the choice of crystals, the copies and the hold-out.")
    ] = 0,
    estimate: Annotated[
        bool,
        typer.Option(
            help="Print how many structures the teacher would label, and the time and disk space for that, "
            "extrapolated from a sample, and exit."
        ),
    ] = False,
    device: Device = "cpu",
    allow_mixed_devices: AllowMixedDevices = False,
    scheduler: Scheduler = None,
    overwrite: Annotated[bool, typer.Option(help="Delete the distillation in --out and start again.")] = False,
) -> None:
    """Distill a large model into a small, fast one.

    Copies of the crystals are rattled and strained, and the teacher labels them with energies, forces and stresses on
    Dask workers. A small network, the student, is trained on these labels and exported. Whole crystals are held out
    with all their copies, and the printed errors and speed compare the student with the teacher on them; they say
    nothing about other chemistries, nor about the error of the teacher itself. Crystals with elements that the teacher
    does not cover stay in the labelled store (labelled.zarr) without labels. The student follows the energy scheme of
    its teacher, so the same references apply to both, and `equiscreen info student/student.onnx` names the teacher. Use
    it as `--fast` in `equiscreen cascade`, with the teacher as `--accurate`. `pip install 'equiscreen[rank,train]'`
    installs everything this command needs.

    \b
    Example:
        equiscreen distill candidates.zarr --teacher 7net-0 --preset small --out student
    """
    from ..campaigns.distillation.distill import distill as run
    from ..campaigns.distillation.estimate import estimate as cost_of_labels
    from ..campaigns.distillation.settings import DistillSettings, VariantSettings

    settings = DistillSettings(
        VariantSettings(variants=variants, rattle=rattle, strain=strain, frames=frames, seed=seed),
        crystals=crystals,
        preset=preset,
        config=config,
        epochs=epochs,
        cutoff=cutoff,
        hold_out=hold_out,
        hold_out_by=hold_out_by,
    )
    if estimate:
        account(cost_of_labels(sources, onnx_file(teacher), settings))
        return
    with resumable():
        report = run(
            sources,
            out,
            teacher,
            settings,
            device=device,
            allow_mixed_devices=allow_mixed_devices,
            scheduler=scheduler,
            overwrite=overwrite,
            progress=shows_progress(),
            note=tell,
        )
    account(report)
