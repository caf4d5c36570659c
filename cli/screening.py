"""The commands that evaluate candidates: `screen`, `relax`, `cascade` and `properties`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .models import MODEL_HELP, onnx_file
from .options import (
    AllowExtrapolation,
    AllowMixedDevices,
    Budget,
    CandidateSources,
    Device,
    Dispersion,
    Estimate,
    Limit,
    MovedStore,
    Overwrite,
    Scheduler,
    Scheme,
)
from .terminal.account import account, shows_progress, tell
from .terminal.interruption import resumable


def screen(
    sources: CandidateSources,
    model: Annotated[
        list[str],
        typer.Option(
            help=f"{MODEL_HELP} Repeat the option to screen with an ensemble of models that share one energy "
            "scheme; scores are then means and standard deviations."
        ),
    ],
    out: Annotated[str, typer.Option(help="Scores dataset to write (Zarr): a path or a URL.")],
    dispersion: Dispersion = "none",
    limit: Limit = None,
    estimate: Estimate = False,
    device: Device = "cpu",
    allow_mixed_devices: AllowMixedDevices = False,
    max_edges: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Mark structures with more edges than this as too large (an edge takes about 42 kB of memory with "
            "7net-0).",
            show_default="100,000",
        ),
    ] = None,
    min_distance: Annotated[
        float | None,
        typer.Option(
            help="Also mark structures with two atoms (of any elements) closer than this, in angstrom, as "
            "extrapolating.",
            show_default="no bound beyond those for each pair of elements",
        ),
    ] = None,
    allow_extrapolation: AllowExtrapolation = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Keep the existing scores, and score only structures that were added to the store since the last run "
            "or that --limit excluded.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Score every structure in a graph store or in structure files.

    Files are featurized first, with the cutoff of the model, into a store next to the scores: S.graphs.zarr with
    --out S.zarr. The file failures.parquet in this store lists the structures that could not be read. To keep extra
    columns or set the format of the files, run `equiscreen featurize` first and screen its store.

    Open the result with xarray.open_zarr. For each structure, it holds the properties that the model predicts (energy,
    energy_per_atom, max_force, stress and others), with units, and a status (ok, or why there is no
    reliable score). With several models or an exported ensemble, it also holds energy_std and max_force_std; with
    several models, energy_members too. An interrupted run resumes when you run the same command again.

    \b
    Example:
        equiscreen screen candidates.zarr --model 7net-0 --out scores.zarr
    """
    from ..screening.scoring import screen as scoring
    from ..screening.scoring import screen_files
    from ..screening.scoring.score import MAX_SCORED_EDGES

    files = [onnx_file(name) for name in model]
    if estimate:
        account(screen_files.estimate(sources, files, out, limit, dispersion=dispersion))
        return
    with resumable():
        scores = screen_files.screen_files(
            sources,
            files,
            out,
            dispersion=dispersion,
            device=device,
            allow_mixed_devices=allow_mixed_devices,
            max_edges=max_edges or MAX_SCORED_EDGES,
            min_distance=min_distance,
            allow_extrapolation=allow_extrapolation,
            scheduler=scheduler,
            limit=limit,
            append=append,
            overwrite=overwrite,
            progress=shows_progress(),
            command=scoring.command_line(sys.argv[1:]),
            announce=tell,
        )
    account(scoring.summary(scores, out), scores, path=out)


def relax(
    sources: CandidateSources,
    model: Annotated[str, typer.Option(help=f"{MODEL_HELP} The model must predict forces and stress.")],
    out: Annotated[str, typer.Option(help="Scores dataset to write (Zarr): a path or a URL.")],
    dispersion: Dispersion = "none",
    fmax: Annotated[float, typer.Option(help="Convergence threshold: largest force on an atom, eV/angstrom.")] = 0.02,
    smax: Annotated[
        float,
        typer.Option(help="Convergence threshold: largest component of the sum of stress and external pressure, GPa."),
    ] = 0.05,
    max_steps: Annotated[
        int, typer.Option(min=1, help="Maximum number of evaluations per structure; --rattle allows as many again.")
    ] = 500,
    pressure: Annotated[float, typer.Option(help="External pressure, GPa.")] = 0.0,
    fix_cell: Annotated[bool, typer.Option("--fix-cell", help="Relax only the atoms and keep the cell fixed.")] = False,
    cell_axes: Annotated[
        str,
        typer.Option(
            metavar="AXES",
            help="Relax the cell only in the directions of these lattice vectors, such as ab for the first two; "
            "non-periodic directions are ignored. Without this option, slabs and chains keep their cell.",
            show_default="all for a crystal, none for a slab or chain",
        ),
    ] = "",
    fix_symmetry: Annotated[bool, typer.Option("--fix-symmetry", help="Preserve the space group.")] = False,
    rattle: Annotated[
        float,
        typer.Option(
            help="After relaxing, displace the atoms at random with this standard deviation in angstrom (0.05 works "
            "well) and relax again, since a symmetric structure may be at a saddle point; the result is kept if its "
            "energy is lower by more than 1 meV/atom. 0 skips this step."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of --rattle.")] = 0,
    optimizer: Annotated[Literal["lbfgs", "fire"], typer.Option(help="Optimizer: L-BFGS or FIRE.")] = "lbfgs",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Keep every step, as extended XYZ in the folder R.trajectories.")
    ] = False,
    allow_extrapolation: AllowExtrapolation = False,
    budget: Budget = None,
    limit: Limit = None,
    estimate: Estimate = False,
    device: Device = "cpu",
    allow_mixed_devices: AllowMixedDevices = False,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Relax every structure in a graph store or in structure files.

    Atoms and cell relax together. With --out R.zarr, the dataset R.zarr has one row per structure: the energy and
    space group before and after, the largest remaining force, the remaining stress, the change in volume, and a status
    (ok, or why there is no reliable result). The relaxed structures are in the graph store R.graphs.zarr next to it, in
    the same order. Files are featurized first, with the cutoff of the model, into R.candidates.graphs.zarr. An
    interrupted run resumes when you run the same command again.

    \b
    Example:
        equiscreen relax candidates.zarr --model 7net-0 --out relaxed.zarr
    """
    from ..screening.relaxation import relax as relaxation
    from ..screening.relaxation import relax_files
    from ..screening.relaxation.batched import RelaxSettings
    from ..screening.relaxation.optimizers import Optimizer

    settings = RelaxSettings(
        fmax=fmax,
        smax=smax,
        max_steps=max_steps,
        optimizer=Optimizer(optimizer),
        pressure=pressure,
        fix_cell=fix_cell,
        cell_axes=cell_axes,
        fix_symmetry=fix_symmetry,
        rattle=rattle,
        seed=seed,
        trajectory=trajectory,
        allow_extrapolation=allow_extrapolation,
    )
    file = onnx_file(model)
    if estimate:
        account(relax_files.estimate(sources, file, settings, limit, dispersion=dispersion))
        return
    with resumable():
        relaxed = relax_files.relax_files(
            sources,
            file,
            out,
            settings,
            dispersion=dispersion,
            device=device,
            allow_mixed_devices=allow_mixed_devices,
            scheduler=scheduler,
            limit=limit,
            budget=budget,
            overwrite=overwrite,
            progress=shows_progress(),
            announce=tell,
        )
    account(relaxation.summary(relaxed, out), relaxed, path=out)


def cascade(
    sources: CandidateSources,
    fast: Annotated[
        str,
        typer.Option(
            help="Fast model, which scores every structure: an ONNX file, the name of published weights or a "
            "checkpoint."
        ),
    ],
    accurate: Annotated[
        str,
        typer.Option(
            help="Accurate model, which evaluates the structures that are kept: an ONNX file, the name of published "
            "weights or a checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; run the same command again to resume.")],
    references: Annotated[
        list[str], typer.Option(help="Competing phases, in the formats of `equiscreen hull --references`. Repeatable.")
    ],
    fast_references: Annotated[
        list[str] | None,
        typer.Option(
            help="Competing phases for the fast model, if its energies follow a different scheme. Repeatable.",
            show_default="--references",
        ),
    ] = None,
    keep_below: Annotated[
        float,
        typer.Option(
            help="Keep structures that the fast model predicts to be at most this far above the hull, eV/atom."
        ),
    ] = 0.2,
    target: Annotated[
        float,
        typer.Option(
            help="Count a structure as a hit if the accurate model predicts it to be at most this far above the "
            "hull, eV/atom."
        ),
    ] = 0.05,
    audit: Annotated[
        int,
        typer.Option(
            min=1, help="Number of rejected structures that the accurate model evaluates too, to estimate the recall."
        ),
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the audit sample.")] = 0,
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax with the accurate model, or only score with it.")
    ] = True,
    scheme: Scheme = None,
    dispersion: Dispersion = "none",
    budget: Budget = None,
    device: Device = "cpu",
    allow_mixed_devices: AllowMixedDevices = False,
    scheduler: Scheduler = None,
    overwrite: Annotated[bool, typer.Option(help="Delete the cascade in --out and start again.")] = False,
) -> None:
    """Screen with a fast model, then with an accurate one.

    With --out FOLDER, files are first featurized into FOLDER.candidates.graphs.zarr, with the larger of the two models'
    cutoffs. The accurate model evaluates the structures that the fast model keeps, and audits a random sample of the
    rejected ones. The printed recall, with its Clopper-Pearson interval, estimates the fraction of all hits that the
    cascade keeps. FOLDER/result.zarr holds the kept structures followed by the audited ones, relaxed (unless --no-relax
    is given) and with their energies above the hull. An interrupted run resumes when you run the same command again.
    This command needs `pip install 'equiscreen[hull]'`.

    \b
    Example:
        equiscreen cascade candidates.zarr --fast small.onnx --accurate 7net-0 \\
            --references entries.json.gz --out cascade
    """
    from .. import screening
    from ..screening import multi_fidelity

    with resumable():
        found = screening.cascade(
            sources,
            onnx_file(fast),
            onnx_file(accurate),
            out,
            references,
            multi_fidelity.CascadeSettings(keep_below, target, audit, seed, relax),
            fast_references=fast_references,
            scheme=scheme,
            dispersion=dispersion,
            device=device,
            allow_mixed_devices=allow_mixed_devices,
            scheduler=scheduler,
            budget=budget,
            overwrite=overwrite,
            progress=shows_progress(),
            announce=tell,
        )
    account(multi_fidelity.summary(found, out), found, path=out)


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
    out: Annotated[str, typer.Option(help="Dataset to write (Zarr): a path or a URL.")],
    what: Annotated[
        str,
        typer.Option(
            help="Properties to compute, separated by commas: elastic (elastic tensor and moduli), eos (bulk "
            "modulus from energies at several volumes), phonons (dynamical stability, heat capacity, bands), kappa "
            "(lattice thermal conductivity; minutes per crystal)."
        ),
    ] = "elastic",
    preset: Annotated[
        str,
        typer.Option(
            help="Protocol: `default` relaxes the ions of each strained cell and uses the symmetry of the crystal; "
            "`matcalc` (elastic and eos only) follows MatCalc's benchmark, with clamped ions and larger strains for "
            "elastic; `phonondb-103` (phonons and kappa only) follows the benchmark of thermal conductivities with "
            "this name."
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
            help="Relax each crystal first, as tightly as the preset requires. With --no-relax, crystals are used as "
            "they are, and those with larger forces or stress than the preset allows have the status not_relaxed, "
            "although their properties are computed.",
        ),
    ] = True,
    born: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Born charges and dielectric tensors, which split longitudinal and transverse optical phonons: a file "
            "in phonopy's format BORN for a single crystal, or a folder with ID/BORN or ID.BORN for each structure id.",
            show_default="none",
        ),
    ] = None,
    follow_modes: Annotated[
        bool,
        typer.Option(
            "--follow-modes",
            help="Displace each crystal with imaginary modes along the softest one, in a supercell that the mode "
            "fits into, and relax it. Structures of lower energy are written to P.followed.graphs.zarr.",
        ),
    ] = False,
    dispersion: Dispersion = "none",
    limit: Limit = None,
    estimate: Estimate = False,
    device: Device = "cpu",
    allow_mixed_devices: AllowMixedDevices = False,
    store: MovedStore = None,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Compute elastic tensors, phonons and other properties of crystals.

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
        cost = estimates.estimate(
            source,
            file,
            names,
            preset=preset,
            where=where,
            relax=relax,
            born=born,
            follow_modes=follow_modes,
            limit=limit,
            store=store,
            dispersion=dispersion,
        )
        account(cost)
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
            born=born,
            follow_modes=follow_modes,
            store=store,
            dispersion=dispersion,
            device=device,
            allow_mixed_devices=allow_mixed_devices,
            scheduler=scheduler,
            limit=limit,
            overwrite=overwrite,
            progress=shows_progress(),
        )
    account(compute.summary(found, out), found, path=out)
