"""The verb `properties`: elastic tensors, equations of state, phonons and thermal conductivities of whole screens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .interruption import resumable
from .models import MODEL_HELP, onnx_file
from .options import Device, Estimate, Limit, MovedStore, Overwrite, Scheduler
from .terminal.account import account, shows_progress


def properties(
    source: Annotated[
        str,
        typer.Argument(
            metavar="R.zarr|FOLDER",
            help="Dataset written by `equiscreen relax`, `hull` or `select`; the folder that `select`, `cascade` or "
            "`rank` wrote; or a graph store.",
        ),
    ],
    model: Annotated[str, typer.Option(help=f"{MODEL_HELP} The model must predict forces and stress.")],
    out: Annotated[Path, typer.Option(help="Dataset to write (Zarr).")],
    what: Annotated[
        str,
        typer.Option(
            help="Properties to compute, separated by commas: elastic (elastic tensor and moduli), eos (bulk "
            "modulus from energies at several volumes), phonons (dynamical stability, heat capacity, bands), kappa "
            "(lattice thermal conductivity; hours for a hundred crystals)."
        ),
    ] = "elastic",
    preset: Annotated[
        str,
        typer.Option(
            help="Protocol: `default` relaxes the ions of each strained cell and uses the symmetry of the crystal; "
            "`matcalc` follows MatCalc's benchmark, with clamped ions and larger strains; `phonondb-103` follows the "
            "benchmark of thermal conductivities with this name."
        ),
    ] = "default",
    where: Annotated[
        str | None,
        typer.Option(
            help='Compute only structures that meet this filter, such as "energy_above_hull < 0.05"; see '
            "`equiscreen select --help`.",
            show_default="all structures",
        ),
    ] = None,
    relax: Annotated[
        bool,
        typer.Option(
            "--relax/--no-relax",
            help="Relax each crystal first, as tightly as the preset requires, or take it as it is; crystals that are "
            "not relaxed then have the status not_relaxed besides their properties.",
        ),
    ] = True,
    limit: Limit = None,
    estimate: Estimate = False,
    device: Device = "cpu",
    store: MovedStore = None,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Compute elastic tensors, equations of state, phonons and thermal conductivities of relaxed crystals.

    Each crystal is relaxed tightly, then its cell is strained or its atoms are displaced; the cells of many crystals
    are evaluated together. With --out P.zarr, the dataset P.zarr has one row per crystal: its elastic tensor, bulk and
    shear modulus (Voigt, Reuss, Hill), whether it is mechanically and dynamically stable, and so on, with units, next
    to the columns of R.zarr. The relaxed crystals are in the graph store P.graphs.zarr, in the same order. The status
    is ok, imaginary_modes, not_applicable (a molecule or slab), not_relaxed, symmetry_changed, too_large or failed, and
    status_note gives the reason. Phonons and conductivities need `pip install 'equiscreen[properties]'`.

    `equiscreen select P.zarr --where "bulk_modulus_vrh > 200 and is_mechanically_stable"` chooses among the results. An
    interrupted run resumes when you run the same command again.

    \b
    Example:
        equiscreen properties relaxed.hull.zarr --model 7net-0 --what elastic,eos \\
            --where "energy_above_hull < 0.05" --out properties.zarr
    """
    from ..screening.properties import compute, estimates

    file = onnx_file(model)
    names = [name.strip() for name in what.split(",") if name.strip()]
    if estimate:
        account(estimates.estimate(source, file, names, preset=preset, where=where, limit=limit, store=store))
        return
    with resumable():
        found = compute.compute_properties(
            source,
            file,
            out,
            names,
            preset=preset,
            where=where,
            relax=relax,
            store=store,
            device=device,
            scheduler=scheduler,
            limit=limit,
            overwrite=overwrite,
            progress=shows_progress(),
        )
    account(compute.summary(found, out), found, path=out)
