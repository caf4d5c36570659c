"""The commands that make graph stores: `generate`, `featurize` and `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..pipeline.errors import ConfigError
from ..pipeline.sources.formats import Format
from ..pipeline.store.dedup import Dedup
from .models import onnx_file
from .options import Deduplication, Estimate, Limit, Overwrite, Scheduler
from .terminal.account import account, shows_progress
from .terminal.interruption import resumable


def generate(
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    prototypes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROTOTYPES.zarr",
            help="Graph stores of crystals to start from. For structure files, run `equiscreen featurize` first.",
            show_default="the AFLOW prototypes that ship with pymatgen",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of candidates to generate.")] = 10_000,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed; the same prototypes, seed and options give the same candidates.")
    ] = 0,
    elements: Annotated[
        str | None,
        typer.Option(
            help="Elements that candidates may contain, separated by commas, for example Li,Na,O.", show_default="all"
        ),
    ] = None,
    max_atoms: Annotated[
        int | None,
        typer.Option(min=2, help="Skip prototypes with more atoms per cell than this.", show_default="no limit"),
    ] = None,
    min_probability: Annotated[
        float, typer.Option(help="Skip substitutions that are less probable than this (between 1e-6 and 1).")
    ] = 1e-4,
    overwrite: Overwrite = False,
) -> None:
    """Generate candidate crystals by ion substitution in known crystals.

    Each prototype is assigned oxidation states; prototypes to which none can be assigned (such as metals and alloys)
    are skipped. Ions are substituted at random, according to the probabilities that Hautier et al. (2011) mined from
    known compounds, so more likely substitutions tend to come first. Charge neutrality is preserved, and the volume is
    scaled with the ionic radii. When all likely substitutions are used up, slightly strained and rattled copies follow
    until --count is reached; no two candidates are equal.

    The parquet file has the columns id, lattice_vectors, cartesian_site_positions, species_at_sites, prototype and
    substitution_probability. `equiscreen featurize` and `equiscreen screen` can read it. This command needs `pip
    install 'equiscreen[generate]'`.

    \b
    Example:
        equiscreen generate --out candidates.parquet --count 5000 --elements Li,Na,O,Cl
    """
    from ..pipeline.generation import generate as generation

    symbols = None if elements is None else [symbol.strip() for symbol in elements.split(",")]
    report = generation.generate(
        prototypes or (),
        out,
        count,
        seed=seed,
        elements=symbols,
        max_atoms=max_atoms,
        min_probability=min_probability,
        overwrite=overwrite,
        progress=shows_progress(),
    )
    account(report)


def featurize(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Files, folders, globs or URLs (s3://, https://, zip://) of CIF, POSCAR, extended XYZ, VASP output "
            "(XDATCAR; vasprun.xml and OUTCAR only if given by name), JSON, JSON lines, ASE databases, and CSV or "
            "parquet with a column of structures. Text files may be compressed, and files may be packed in zip or tar "
            "archives. optimade:URL queries an OPTIMADE server.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Graph store to write (Zarr): a path, or a URL such as s3://BUCKET/G.zarr.")],
    cutoff: Annotated[
        float | None,
        typer.Option(
            help="Cutoff radius of the neighbour graph, angstrom.",
            show_default="5.0; with --append, the cutoff of the store",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Use the cutoff of this model instead of --cutoff: an ONNX file, the name of published weights such "
            "as 7net-0, or a checkpoint."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Label mapping: a YAML file, or the name of a mapping that ships with equiscreen, such as `mlearn`."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="A label to read, in the form NAME=KEY.PATH, where KEY.PATH is a column, a key or a dotted path. A "
            ":SHAPE after NAME and a unit in square brackets at the end are optional, for example "
            "energy=outputs.E[eV], dielectric:3x3=e_total or charge:atom=charges[e]. Repeatable."
        ),
    ] = None,
    save_labels: Annotated[
        Path | None, typer.Option(help="Write the mapping given by --labels, --label and --column to this YAML file.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="Column or key to copy to the store. Repeatable.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Column or key that holds the structure ids.")] = None,
    file_format: Annotated[
        Format | None,
        typer.Option("--format", help="Format of all sources.", show_default="detected from the content"),
    ] = None,
    structure_field: Annotated[
        str | None,
        typer.Option(
            help="Column, or dotted path in JSON, that holds the structure.", show_default="found automatically"
        ),
    ] = None,
    dedup: Deduplication = Dedup.EXACT,
    max_atoms: Annotated[
        int | None,
        typer.Option(min=1, help="Record structures with more atoms than this as failures.", show_default="65,535"),
    ] = None,
    max_edges: Annotated[
        int | None,
        typer.Option(min=1, help="Record structures with more edges than this as failures.", show_default="20,000,000"),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the structures to the existing store at --out.")
    ] = False,
    limit: Limit = None,
    estimate: Estimate = False,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Turn structure files into a store of periodic neighbour graphs.

    Every structure is accounted for: read = stored + failed + duplicate. The store's failures.parquet lists each
    failure with its reason. An interrupted run resumes when you run the same command again.

    Energies, forces and stresses are read automatically from extended XYZ, ASE databases, vasprun.xml and OUTCAR. For
    other formats, map columns or keys to labels with --labels or --label.

    \b
    Example:
        equiscreen featurize candidates/*.cif --out candidates.zarr --cutoff 5.0
    """
    from ..pipeline.featurization import estimate as estimation
    from ..pipeline.featurization import featurize as featurization
    from ..pipeline.graphs.neighbor_list import MAX_EDGES
    from ..pipeline.labels.mapping import LabelMapping
    from ..pipeline.readers.records import ReadOptions
    from ..pipeline.runs.staging import check_file
    from ..pipeline.structures.structure import MAX_ATOMS

    if cutoff is not None and model is not None:
        raise ConfigError("--cutoff and --model both set the cutoff; use only one of them")
    if append and overwrite:
        raise ConfigError("--append adds to a store and --overwrite replaces it; use only one of them")
    if model is not None:
        from ..export.runtime.onnx_potential import OnnxPotential

        cutoff = OnnxPotential.load(onnx_file(model), threads=1).cutoff
    if save_labels is not None:
        check_file(save_labels, [*sources, *([labels] if labels else [])], overwrite=overwrite)
    mapping = (LabelMapping.load(labels) if labels else LabelMapping()).with_inline(label or (), column or ())
    if save_labels is not None:
        mapping.save(save_labels)
    settings: dict[str, Any] = {
        "cutoff": cutoff,
        "labels": mapping,
        "options": ReadOptions(file_format, structure_field),
        "id_field": id_field,
        "dedup": dedup,
        "max_atoms": max_atoms or MAX_ATOMS,
        "max_edges": max_edges or MAX_EDGES,
    }
    if estimate:
        account(estimation.estimate(sources, limit=limit, **settings))
        return
    with resumable():
        report = featurization.featurize(
            sources,
            out,
            limit=limit,
            append=append,
            overwrite=overwrite,
            scheduler=scheduler,
            progress=shows_progress(),
            **settings,
        )
    account(report)


def merge(
    stores: Annotated[
        list[str], typer.Argument(metavar="G.zarr", help="Graph stores to merge; all must have the same cutoff.")
    ],
    out: Annotated[str, typer.Option(help="Graph store to write (Zarr): a path or a URL.")],
    dedup: Deduplication = Dedup.EXACT,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Merge graph stores into one, without duplicates.

    Of several duplicates, only the first is kept. Labels and columns that only some stores have are left empty for
    structures from the other stores; labels with the same name must have the same shape and unit. An interrupted run
    resumes when you run the same command again.

    \b
    Example:
        equiscreen merge a.zarr b.zarr --out all.zarr --dedup crystal
    """
    from ..pipeline.featurization import merge as merging

    with resumable():
        report = merging.merge(
            stores, out, dedup=dedup, overwrite=overwrite, scheduler=scheduler, progress=shows_progress()
        )
    account(report)
