"""The commands that turn scores into a ranked list: `hull`, `select` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MovedStore, Overwrite, References, Scheme, Within
from .terminal.account import account, shows_progress
from .terminal.interruption import resumable


def hull(
    scores: Annotated[
        str,
        typer.Argument(
            metavar="S.zarr",
            help="Scores written by `equiscreen screen` or `equiscreen relax`, or their URL; or a graph store with "
            "energies as labels (--scheme is then required, and gives the scheme of the labels too).",
        ),
    ],
    references: References = None,
    out: Annotated[
        str | None, typer.Option(help="Dataset to write (Zarr): a path or a URL.", show_default="S.hull.zarr")
    ] = None,
    scheme: Scheme = None,
    store: MovedStore = None,
    model_references: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R.zarr",
            help="References, including the elements, relaxed with the model of the candidates (`equiscreen relax`); "
            "adds the energy above the hull of these references, with all energies computed by the model. Repeatable.",
        ),
    ] = None,
    unrelaxed_references: Annotated[
        bool,
        typer.Option(
            "--unrelaxed-references",
            help="Accept datasets of unrelaxed structures as references for relaxed candidates.",
        ),
    ] = False,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self",
            help="Leave each structure's own phase (recognised by structure, not by name) out of its hull. Every "
            "reference must then have a structure.",
        ),
    ] = False,
    within: Within = 0.05,
    error: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the model's errors in energies above hull, eV/atom; adds the probability that "
            "a structure is below the hull and the probability that it is at most --within above it. If the structures "
            "were scored with several models, their spread is used instead.",
            show_default="unknown",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Temperature in K; adds the free energy above the hull of --model-references. The free energies of "
            "vibrations come from `equiscreen properties --what phonons`, which must have been run for S.zarr and "
            "for all references.",
            show_default="no free energies",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute every structure's energy above the convex hull.

    The hull is built from the known phases in --references or, without them, from the candidates and the elements. The
    output holds everything in S.zarr and adds energy_above_hull (negative: below the hull of the references),
    energy_above_joint_hull (relative to the hull of references and candidates together), formation energies (eV/atom)
    and the decomposition products. Without --exclude-self, the energy_above_hull of a known stable phase is just the
    model's error, which can have either sign. References with a different functional or scheme are left out and
    counted. Energies in the mp-uncorrected scheme, of candidates and references alike, receive the MP2020 corrections
    exactly once. For unrelaxed structures, the names of the added energy columns end in _unrelaxed. This command needs
    `pip install 'equiscreen[hull]'`. An interrupted run resumes when you run the same command again.

    \b
    Example:
        equiscreen hull relaxed.zarr --references entries.json.gz
    """
    from ..screening.convex_hull import hull as convex_hull
    from ..screening.dataset.paths import hull_path

    target = out or hull_path(scores)
    with resumable():
        found = convex_hull.hull(
            scores,
            references or (),
            target,
            scheme=scheme,
            store=store,
            model_references=model_references or (),
            unrelaxed_references=unrelaxed_references,
            exclude_self=exclude_self,
            within=within,
            error=error,
            temperature=temperature,
            overwrite=overwrite,
            progress=shows_progress(),
        )
    account(convex_hull.summary(found, target), found, path=target)


def select(
    scores: Annotated[
        str,
        typer.Argument(
            metavar="S.zarr|FOLDER",
            help="Scores written by `equiscreen screen`, `relax`, `hull` or `select`, or their URL; or a folder "
            "written by `equiscreen select`, `cascade` or `rank`.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    where: Annotated[
        str | None,
        typer.Option(
            help='Filter expression, such as "energy_above_hull < 0.05 and n_atoms <= 20" or \'status in ["ok", '
            '"not_converged"]\'. It may contain `and`, `or`, `not`, arithmetic, comparisons, `in [...]`, `abs`, `min`, '
            "`max` and `isnan`; names are columns of S.zarr or columns that `select` adds."
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of best structures to keep.", show_default="all")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Column to rank by, lowest first; -COLUMN ranks highest first.",
            show_default="the column that `rank` used, if `rank` wrote FOLDER; else energy_above_hull, "
            "energy_above_joint_hull or formation_energy_per_atom, the first that exists (of unrelaxed "
            "structures they end in _unrelaxed); else energy_per_atom, if all structures have the same composition",
        ),
    ] = None,
    allowed_elements: Annotated[
        list[str] | None,
        typer.Option(help="Keep structures that contain only these elements, for example Li,Fe,O.", show_default="all"),
    ] = None,
    any_elements: Annotated[
        list[str] | None,
        typer.Option(help="Keep structures that contain at least one of these elements, for example Li,Na."),
    ] = None,
    excluded_elements: Annotated[
        list[str] | None, typer.Option(help="Skip structures that contain any of these elements, for example Cd,Pb.")
    ] = None,
    pareto: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep the Pareto front of two or more columns, for example energy_above_hull,-band_gap. Lower is "
            "better; write -COLUMN where higher is better. With --top, further fronts follow until that many "
            "structures are kept."
        ),
    ] = None,
    per_system: Annotated[
        int | None,
        typer.Option(min=1, help="Keep at most this many structures per chemical system.", show_default="no limit"),
    ] = None,
    per_prototype: Annotated[
        int | None,
        typer.Option(min=1, help="Keep at most this many structures per prototype.", show_default="no limit"),
    ] = None,
    uncertainty_weight: Annotated[
        float,
        typer.Option(min=0.0, help="Before ranking, penalise each value by this many of its standard deviations."),
    ] = 0.0,
    known: Annotated[
        str | None,
        typer.Option(metavar="G.zarr", help="Graph store of known crystals; adds columns that mark new structures."),
    ] = None,
    output_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="Formats to write, separated by commas: cif, csv, extxyz, optimade, parquet, vasp, vasp-static, zarr.",
        ),
    ] = "cif,csv,zarr",
    store: MovedStore = None,
    overwrite: Overwrite = False,
) -> None:
    """Select the best structures and write them to files.

    The ten best rows (with --top, all that are kept, up to 100) are printed as a table; ranked.csv holds all selected
    rows. Only rows with the status ok are considered, unless the filter refers to status. The number of rows skipped
    for each reason is printed. Columns for charge neutrality, magnetic elements, prototype and (with --known) novelty
    are added. The filter may use them too; they are then computed only for rows that meet its other conditions. Charge
    neutrality, --known and the VASP formats need `pip install 'equiscreen[select]'`.

    \b
    Example:
        equiscreen select relaxed.hull.zarr --out best --top 100 \\
            --where "energy_above_hull < 0.05 and n_atoms <= 20"
    """
    from ..screening.selection import select as selection

    found = selection.select(
        scores,
        out,
        where,
        top=top,
        by=by,
        allowed_elements=allowed_elements or (),
        any_elements=any_elements or (),
        excluded_elements=excluded_elements or (),
        pareto=pareto or (),
        per_system=per_system,
        per_prototype=per_prototype,
        uncertainty_weight=uncertainty_weight,
        known=known,
        formats=(output_format,),
        store=store,
        overwrite=overwrite,
        progress=shows_progress(),
    )
    account(selection.summary(found, out), found, path=out)


def report(
    scores: Annotated[
        str,
        typer.Argument(
            metavar="S.zarr|FOLDER",
            help="Scores written by `equiscreen screen`, `relax`, `hull` or `select`, or their URL; or a folder "
            "written by `equiscreen select`, `cascade` or `rank`.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.", show_default="S.report.html")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default="Screen of S.zarr")] = None,
    top: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of candidates in the table.")] = 10_000,
    by: Annotated[
        str | None, typer.Option(help="Column to rank by, lowest first.", show_default="as described above")
    ] = None,
    selection: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder written by `equiscreen select` from these scores; the table then shows which structures are "
            "known or charge-neutral.",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the charts, each as PNG and SVG, 85 mm wide, with its data as CSV. Requires "
            "`pip install 'equiscreen[report]'`."
        ),
    ] = None,
    store: MovedStore = None,
    overwrite: Overwrite = False,
) -> None:
    """Write an HTML report on a screening run.

    The report shows the best candidates with pictures, a table that can be sorted and filtered, structures that can be
    rotated and downloaded, phonon bands, counts of structures, distributions of energies, element counts, and what the
    run cost. The page needs no other files and no internet connection. Candidates are ranked by energy above hull
    or, if the scores have none, by formation energy; `equiscreen hull` computes both, so run it first. Without either,
    candidates are ranked by energy per atom if all have the same composition, and otherwise not at all. Identical
    crystals share one row of the table, which expands to show all of them.

    \b
    Example:
        equiscreen report relaxed.hull.zarr --top 20
    """
    from ..screening.dataset.default_ranking import NOT_COMPARABLE, default_ranking
    from ..screening.dataset.paths import dataset_in
    from ..screening.dataset.reader import ScoresReader
    from ..screening.reporting import report as reporting

    scores = str(dataset_in(scores))
    page = reporting.report(
        scores,
        out,
        title=title,
        top=top,
        by=by,
        store=store,
        selection=selection,
        charts=figures,
        overwrite=overwrite,
    )
    rows = ScoresReader(scores)
    ranking, size = by or default_ranking(rows), page.stat().st_size
    text = f"{page}: {size / 1e6:.1f} MB"
    if ranking is None:
        text += f"\nno candidates are ranked: {NOT_COMPARABLE}"
    account(text, {"scores": scores, "rows": len(rows), "ranked_by": ranking, "bytes_on_disk": size}, path=page)
