"""The command line: every verb calls one public function and ends with one line on what it did."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import __version__
from .demo.acts import Act
from .pipeline.errors import ConfigError, EquiscreenError
from .pipeline.sources.formats import Format
from .pipeline.store.schema import Dedup

app = typer.Typer(
    help="Screen crystal structures with E(3)-equivariant neural networks.\n\n"
    "The usual way: featurize structure files into a graph store, train a network on it, export it to ONNX, and screen "
    "a store of candidates with that file. `equiscreen demo` does all of it on an example in a few minutes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# What to install for modules that are not part of the base.
_EXTRAS = {
    "pymatgen": "generate",
    "smact": "select",
    "ase_db_backends": "lmdb",
    "httpx": "remote",
    "s3fs": "remote",
    "aiohttp": "remote",
}

Overwrite = Annotated[bool, typer.Option(help="Replace what is at --out.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N structures.")]
Estimate = Annotated[bool, typer.Option(help="Say what the run would take, from a sample, and stop.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Where the work is done: nothing starts one Dask worker process for each core, tcp://HOST:PORT takes a "
        "running cluster, `threads` stays in this process (for debugging)."
    ),
]


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder; each act leaves stores, model and scores in a folder of its own.")
    ] = Path("equiscreen-demo"),
    only: Annotated[Act | None, typer.Option(help="Run this act alone.")] = None,
    candidates: Annotated[int, typer.Option(min=10, help="Of act two: new structures to screen.")] = 5000,
    training: Annotated[int, typer.Option(min=20, help="Of act two: structures to train on.")] = 1500,
    epochs: Annotated[int, typer.Option(min=1, help="Of act two: epochs of training.")] = 40,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Run the main job, end to end, in two acts.

    Act one, `published`: the published weights 7net-0 are imported, exported to ONNX, and rank intermetallics of Al,
    Ti, Co and Ni that are made from real prototypes. It needs `pip install 'equiscreen[demo]'`. Without the package
    that carries the weights it is left out, act two is run, and the exit code is 1.

    Act two, `train`: alloys of seven metals are labelled with ASE's EMT, a cheap classical potential; a network is
    trained on some, exported, and ranks several thousand others, which EMT then checks.
    """
    from .demo.job import LeftOut, run_demo

    complete = True
    for report in run_demo(
        out,
        only=only,
        n_candidates=candidates,
        n_training=training,
        epochs=epochs,
        overwrite=overwrite,
        scheduler=scheduler,
    ):
        left_out = isinstance(report, LeftOut)
        print(report, file=sys.stderr if left_out else sys.stdout, flush=True)  # the next act takes minutes
        complete &= not left_out
    if not complete:
        raise typer.Exit(1)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    prototypes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROTOTYPES.zarr",
            help="Graph stores of crystals to start from; structure files first go through `equiscreen featurize`. "
            "Nothing: the AFLOW prototypes that pymatgen ships.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Candidates to make.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other candidates; the same one, the same.")] = 0,
    elements: Annotated[
        str | None, typer.Option(help="Elements that candidates may have: Li,Na,O.  [default: all]")
    ] = None,
    max_atoms: Annotated[int | None, typer.Option(min=2, help="Leave out prototypes with more atoms.")] = None,
    min_probability: Annotated[float, typer.Option(help="Leave out substitutions that are less likely.")] = 1e-4,
    overwrite: Overwrite = False,
) -> None:
    """Make new candidate crystals from real ones, by ion substitution.

    Prototypes are given oxidation states; those that cannot have any (metals and alloys) are left out. Their ions are
    replaced with the probabilities that Hautier et al. (2011) mined from known compounds, the likelier the earlier;
    charge neutrality is kept, and the volume follows the ionic radii. When all likely substitutions are used up,
    slightly strained and rattled copies follow, so that every --count is reached; no two candidates are equal.

    The parquet file has the columns id, lattice_vectors, cartesian_site_positions, species_at_sites, prototype and
    substitution_probability.
    """
    from .pipeline.generation import generate as work

    symbols = None if elements is None else [symbol.strip() for symbol in elements.split(",")]
    print(
        work.generate(
            prototypes or (),
            out,
            count,
            seed=seed,
            elements=symbols,
            max_atoms=max_atoms,
            min_probability=min_probability,
            overwrite=overwrite,
            progress=True,
        )
    )


@app.command()
def featurize(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, globs or URLs (s3://, https://, zip://) of CIF, POSCAR, CSV or parquet with a column "
            "of structures, extended XYZ, JSON and JSON lines, ASE databases; compressed or in zip and tar archives. "
            "optimade:URL asks a server.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Graph store to write (Zarr): a path, or a URL such as s3://BUCKET/G.zarr.")],
    cutoff: Annotated[float | None, typer.Option(help="Of the neighbour graph, angstrom.  [default: 5.0]")] = None,
    model: Annotated[Path | None, typer.Option(help="Take the cutoff from this ONNX model.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Where labels stand: a YAML file, or a shipped mapping such as `mlearn`.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="One label, as NAME[:SHAPE]=KEY.PATH[unit]: energy=outputs.E[eV], dielectric:3x3=e_total, "
            "charge:atom=charges[e]. Repeatable."
        ),
    ] = None,
    save_labels: Annotated[
        Path | None, typer.Option(help="Write what --labels and --label say to a YAML file.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="Input column to carry along. Repeatable.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Column or key that names a structure.")] = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="Of all sources; it is told from their content if not said.")
    ] = None,
    structure_field: Annotated[
        str | None, typer.Option(help="Column, or dotted path in JSON, that holds the structure, if it is not found.")
    ] = None,
    dedup: Annotated[
        Dedup,
        typer.Option(
            help="What counts as the same structure: `exact` the same cell, coordinates and order; `crystal` the same "
            "crystal in any cell, origin, order and orientation."
        ),
    ] = Dedup.EXACT,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Larger structures are failures.")] = None,
    max_edges: Annotated[int | None, typer.Option(min=1, help="Structures with more edges are failures.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the store at --out.")] = False,
    limit: Limit = None,
    estimate: Estimate = False,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Turn structure files into a store of periodic neighbour graphs.

    Every structure is accounted for: read = stored + failed + duplicate; failures.parquet in the store says why. A run
    that was stopped goes on where it was when the same words are said again.

    What ASE reads (extended XYZ, its databases) brings energy, forces and stress along; for other formats say where
    labels stand.
    """
    from .pipeline.featurization import featurize as work
    from .pipeline.featurization.estimate import estimate as estimate_featurization
    from .pipeline.graphs.neighbor_list import MAX_EDGES
    from .pipeline.labels.mapping import LabelMapping
    from .pipeline.readers.records import ReadOptions
    from .pipeline.structures.structure import MAX_ATOMS

    if cutoff is not None and model is not None:
        raise ConfigError("--cutoff and --model both set the cutoff; say one of them")
    if append and overwrite:
        raise ConfigError("--append adds to a store and --overwrite replaces it; say one of them")
    if model is not None:
        from .export.runtime.onnx_potential import OnnxPotential

        cutoff = OnnxPotential.load(model, threads=1).cutoff
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
        print(estimate_featurization(sources, limit=limit, **settings))
        return
    with _resumable():
        report = work.featurize(
            sources,
            out,
            limit=limit,
            append=append,
            overwrite=overwrite,
            scheduler=scheduler,
            progress=True,
            **settings,
        )
    print(report)


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="G.zarr...", help="Graph stores, of one cutoff.")],
    out: Annotated[str, typer.Option(help="Graph store to write.")],
    dedup: Annotated[Dedup, typer.Option(help="What counts as the same structure; see `featurize --help`.")] = (
        Dedup.EXACT
    ),
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Put graph stores together into one, without what they have in common.

    The first of two equal structures stays. Labels and columns that only some of the stores have are empty for the
    others; those of one name have to be of one shape and unit.
    """
    from .pipeline.featurization.merge import merge as work

    with _resumable():
        print(work(stores, out, dedup=dedup, overwrite=overwrite, scheduler=scheduler, progress=True))


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder; the model becomes model.ckpt in it.")],
    stores: Annotated[
        list[str] | None,
        typer.Argument(metavar="G.zarr...", help="Graph stores with energies (better with forces) or other labels."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML with the sections network and training; what it leaves out has defaults. Every key: "
            "docs/training.md."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train an ensemble of so many networks, whose spread is an uncertainty.")
    ] = 1,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Fine-tune a model.ckpt or run folder (training.fine_tune.checkpoint)."),
    ] = None,
    repeat: Annotated[
        Path | None, typer.Option(help="Repeat the run in this folder to the last bit, without any other words.")
    ] = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a network, or an ensemble, on graph stores.

    Loss on energies, forces and stresses, and on the labels of heads, as far as the stores have them. A training that
    was stopped goes on where it was when the same words are said again, and ends in the same weights. The run folder
    keeps configuration, split, logs (metrics.csv, TensorBoard) and plots of the errors.
    """
    from .model import Config, train_ensemble
    from .model import repeat as repeat_run
    from .model import train as work
    from .pipeline.errors import ConfigError

    if repeat is not None:
        if stores or config or start or limit or seeds > 1:
            raise ConfigError("--repeat takes stores and settings from the run; leave the others out")
        with _resumable():
            print(repeat_run(repeat, out, overwrite=overwrite, progress=True))
        return
    if not stores:
        raise ConfigError("say which graph stores to train on")
    settings = Config.load(config) if config else Config()
    if start is not None:
        settings = settings.starting_from(start)
    with _resumable():
        if seeds > 1:
            found = train_ensemble(
                stores, out, settings, members=seeds, limit=limit, overwrite=overwrite, progress=True
            )
            print(found)
        else:
            print(work(stores, out, settings, limit=limit, overwrite=overwrite, progress=True))


@app.command("import")
def import_(
    source: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="7net-0, 7net-l3i5, 7net-mf-0; or a file of weights.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write.")] = None,
    modality: Annotated[str | None, typer.Option(help="Of a model of several fidelities, which: PBE, R2SCAN.")] = None,
    energy_scheme: Annotated[
        str | None,
        typer.Option(help="Which energies a file of unknown name speaks: mp-uncorrected, omat24, r2scan, own, ..."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run whatever code the file asks for; only for files that you trust.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the weights that are known, and stop.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Take published weights, SevenNet's or Nequix's, as a checkpoint that `equiscreen export` takes.

    SevenNet's .pth and Nequix's .pt and .nqx are read, of any name; the architecture is that of the file. Which
    energies a model speaks decides what they may be compared with, and is kept with them.

        equiscreen import 7net-0 --out 7net-0.ckpt
        equiscreen export 7net-0.ckpt --out 7net-0.onnx
    """
    from .model.pretrained.load import import_weights
    from .model.pretrained.registry import describe_registry

    if list_:
        print(describe_registry())
        return
    if source is None or out is None:
        raise typer.BadParameter("a NAME or FILE and --out are needed; or --list")
    print(import_weights(source, out, modality=modality, energy_scheme=energy_scheme, trust=trust, overwrite=overwrite))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="M.ckpt", help="A checkpoint, or the run folder with one.")],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    outputs: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Keep these alone of energy, forces, stress and heads: energy by itself takes less than a third of "
            "the time.",
        ),
    ] = None,
    float64: Annotated[bool, typer.Option("--float64", help="Compute in float64; several times slower.")] = False,
    average_mirror: Annotated[
        bool,
        typer.Option(
            "--average-mirror",
            help="Average a network that knows no parity (SevenNet) with its mirror image; twice the time.",
        ),
    ] = False,
    opset: Annotated[int, typer.Option(help="Version of the ONNX operators.")] = 20,
    overwrite: Overwrite = False,
) -> None:
    """Lower a network, with forces and stress, to one ONNX file, and check it.

    The graph has to hold no reducing scatter, to agree with PyTorch on fresh structures of other sizes, to give the
    same bits with one and with two threads (in float64: the same but for rounding), and to obey the laws: turned,
    mirrored, moved and renumbered structures. The figures go into the file's metadata: `equiscreen info M.onnx`.
    """
    from .export.exporter import export_onnx

    wanted = None if outputs is None else [name.strip() for name in outputs.split(",") if name.strip()]
    report = export_onnx(
        checkpoint,
        out,
        outputs=wanted,
        float64=float64,
        average_mirror=average_mirror,
        opset=opset,
        overwrite=overwrite,
    )
    print(report)


@app.command()
def screen(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Graph store (G.zarr) of the candidates, or its URL; or structure files of any kind that "
            "`featurize` takes.",
        ),
    ],
    model: Annotated[
        list[Path],
        typer.Option(
            help="ONNX file from `equiscreen export`; again for more of the same energies, which give mean and spread."
        ),
    ],
    out: Annotated[str, typer.Option(help="Scores dataset to write (Zarr): a path or a URL.")],
    limit: Limit = None,
    estimate: Estimate = False,
    device: Annotated[
        str, typer.Option(help="cpu; cuda, or cuda:1 and so on; auto takes a GPU if there is one.")
    ] = "cpu",
    max_edges: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Structures with more edges are too large (100,000; an edge takes some 30 kB with 7net-0).",
            show_default=False,
        ),
    ] = None,
    min_distance: Annotated[
        float | None, typer.Option(help="Mark structures with atoms closer than so many angstrom as extrapolating.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Keep the scores that are there, and score what the store has gained.")
    ] = False,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Score every structure of a graph store, or of structure files.

    Files are featurized first, with the model's cutoff, to a store beside the scores: S.graphs.zarr for S.zarr. It
    stays there, with the structures, and failures.parquet in it says what could not be read. Whoever wants to carry
    columns along or to say formats and names calls `featurize` and screens its store.

    Open the result with xarray.open_zarr: energy, energy_per_atom, max_force and stress, with units, for each
    structure, and a status that says why one could not be scored; of several models also energy_std and
    energy_members. A run that was stopped goes on when the same words are said again.
    """
    from .screening.scoring import screen as screening
    from .screening.scoring import screen_files as filescreen
    from .screening.scoring.score import MAX_SCORED_EDGES

    if estimate:
        print(filescreen.estimate(sources, model, out, limit))
        return
    settings: dict[str, Any] = {"limit": limit, "overwrite": overwrite, "scheduler": scheduler, "progress": True}
    settings["append"] = append
    with _resumable():
        graphs = filescreen.prepare_graphs(sources, model, out, **settings)
        if graphs.summary:
            print(graphs.summary, flush=True)  # scoring may take hours
        scores = screening.screen(
            graphs.path,
            model,
            out,
            device=device,
            max_edges=max_edges or MAX_SCORED_EDGES,
            min_distance=min_distance,
            command=screening.command_line(sys.argv[1:]),
            **settings,
        )
    print(screening.summary(scores, out))


@app.command()
def relax(
    store: Annotated[str, typer.Argument(metavar="G.zarr", help="Graph store, or its URL.")],
    model: Annotated[Path, typer.Option(help="ONNX file from `equiscreen export`, with forces and stress.")],
    out: Annotated[Path, typer.Option(help="Scores dataset to write (Zarr).")],
    fmax: Annotated[float, typer.Option(help="Largest force on an atom of a relaxed structure, eV/angstrom.")] = 0.05,
    smax: Annotated[float, typer.Option(help="Largest component of its stress, besides the pressure, GPa.")] = 0.1,
    max_steps: Annotated[int, typer.Option(min=1, help="Evaluations of one structure.")] = 500,
    pressure: Annotated[float, typer.Option(help="Of the surroundings, GPa.")] = 0.0,
    fix_cell: Annotated[bool, typer.Option("--fix-cell", help="Move atoms only.")] = False,
    fix_symmetry: Annotated[bool, typer.Option("--fix-symmetry", help="Keep the space group.")] = False,
    rattle: Annotated[
        float,
        typer.Option(
            help="Displace what is relaxed by so many angstrom (standard deviation; 0.05 is good) and relax it again: "
            "a symmetric structure may stand on a saddle."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the rattle.")] = 0,
    optimizer: Annotated[Literal["lbfgs", "fire"], typer.Option(help="How a structure goes downhill.")] = "lbfgs",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Keep all points, as extended XYZ in R.trajectories.")
    ] = False,
    budget: Annotated[
        float | None, typer.Option(help="Hours after which nothing new is begun; the same words go on.")
    ] = None,
    limit: Limit = None,
    estimate: Estimate = False,
    device: Annotated[
        str, typer.Option(help="cpu; cuda, or cuda:1 and so on; auto takes a GPU if there is one.")
    ] = "cpu",
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
) -> None:
    """Relax every structure of a graph store, atoms and cell together.

    R.zarr has a row for each structure: energies before and after, largest force and stress that are left, change of
    volume and space group, and a status that says why one could not be relaxed. The relaxed structures are beside it
    in R.graphs.zarr, a graph store row for row the same. A run that was stopped goes on when the same words are said
    again.
    """
    from .screening.relaxation import relax as relaxing
    from .screening.relaxation.batched import RelaxSettings
    from .screening.relaxation.optimizers import Optimizer

    settings = RelaxSettings(
        fmax=fmax,
        smax=smax,
        max_steps=max_steps,
        optimizer=Optimizer(optimizer),
        pressure=pressure,
        fix_cell=fix_cell,
        fix_symmetry=fix_symmetry,
        rattle=rattle,
        seed=seed,
        trajectory=trajectory,
    )
    if estimate:
        print(relaxing.estimate(store, model, settings, limit))
        return
    with _resumable():
        relaxed = relaxing.relax(
            store,
            model,
            out,
            settings,
            device=device,
            scheduler=scheduler,
            limit=limit,
            budget=None if budget is None else budget * 3600,
            overwrite=overwrite,
            progress=True,
        )
    print(relaxing.summary(relaxed, out))


@app.command()
def hull(
    scores: Annotated[str, typer.Argument(metavar="S.zarr", help="Scores of a screen or a relaxation, or their URL.")],
    references: Annotated[
        list[str] | None,
        typer.Option(
            help="Phases that compete: pymatgen's entries (.json, .json.gz), a dataset of ours, or a table (.csv, "
            ".csv.gz, .parquet) with formula and energy_per_atom or formation_energy_per_atom. Repeatable. Nothing: "
            "the candidates alone, which gives lower bounds."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Dataset to write.  [default: S.hull.zarr]")] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Which energies tables hold: mp-uncorrected, mp2020-corrected, omat24, ...")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Graph store of the candidates, if it was moved.")] = None,
    unrelaxed_references: Annotated[
        bool, typer.Option("--unrelaxed-references", help="Take unrelaxed datasets as references of relaxed ones.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure every structure against the convex hull of known phases.

    The dataset holds all of S.zarr, and energy_above_hull (negative: below the hull of the references), the same with
    all candidates in it (energy_above_joint_hull), formation energies and products of decomposition. Energies of
    scheme mp-uncorrected get the MP2020 corrections, once, candidates and references alike; schemes that do not mix
    are refused. Of structures that were not relaxed the names end in _unrelaxed.
    """
    from .screening.convex_hull import hull as convex_hull
    from .screening.dataset.paths import hull_path

    target = out or hull_path(scores)
    with _resumable():
        found = convex_hull.hull(
            scores,
            references or (),
            target,
            scheme=scheme,
            store=store,
            unrelaxed_references=unrelaxed_references,
            overwrite=overwrite,
            progress=True,
        )
    print(convex_hull.summary(found, target))


@app.command()
def cascade(
    store: Annotated[str, typer.Argument(metavar="G.zarr", help="Graph store, or its URL.")],
    fast: Annotated[Path, typer.Option(help="ONNX file of the model that looks at everything.")],
    accurate: Annotated[Path, typer.Option(help="ONNX file of the model that looks at what is kept.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    references: Annotated[list[str], typer.Option(help="Phases that compete, as for `equiscreen hull`. Repeatable.")],
    fast_references: Annotated[
        list[str] | None, typer.Option(help="The same for the fast model, if its energies are of another scheme.")
    ] = None,
    keep_below: Annotated[
        float, typer.Option(help="Kept is what the fast model finds this close to the hull, eV/atom.")
    ] = 0.2,
    target: Annotated[float, typer.Option(help="A hit is what the accurate model finds this close, eV/atom.")] = 0.05,
    audit: Annotated[
        int, typer.Option(min=1, help="Rejected structures that the accurate model looks at too, for the recall.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice.")] = 0,
    relax: Annotated[bool, typer.Option("--relax/--no-relax", help="Let the accurate model relax.")] = True,
    scheme: Annotated[str | None, typer.Option(help="Which energies tables of references hold.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Hours after which a relaxation begins nothing new; the same words go on.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu; cuda, or cuda:1 and so on; auto takes a GPU if there is one.")
    ] = "cpu",
    scheduler: Scheduler = None,
) -> None:
    """Screen with a fast model, then look again with an accurate one at what it keeps.

    A random sample of what the fast model rejects goes through the accurate one as well: the share of hits that the
    cascade finds is printed with its Clopper-Pearson interval. FOLDER/result.zarr has the kept structures, then the
    audited ones, relaxed and with their distances from the hull. A run that was stopped goes on when the same words
    are said again.
    """
    from .screening import cascade as run_cascade
    from .screening.multi_fidelity import CascadeSettings, summary

    with _resumable():
        found = run_cascade(
            store,
            fast,
            accurate,
            out,
            references,
            CascadeSettings(keep_below, target, audit, seed, relax),
            fast_references=fast_references,
            scheme=scheme,
            device=device,
            scheduler=scheduler,
            budget=None if budget is None else budget * 3600,
            progress=True,
        )
    print(summary(found, out))


@app.command()
def select(
    scores: Annotated[str, typer.Argument(metavar="S.zarr", help="Scores of a screen, relaxation or hull, or a URL.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    where: Annotated[
        str | None,
        typer.Option(
            help='Filter: "energy_above_hull < 0.05 and n_atoms <= 20", \'status in ["ok", "not_converged"]\'. '
            "and, or, not, arithmetic, comparisons, `in [...]`, abs, min, max, isnan; names are the columns of S.zarr "
            "and those that a selection adds."
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The best N.")] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Column to rank by, lowest first; -COLUMN: highest first.  [default: energy_above_hull]"),
    ] = None,
    allowed_elements: Annotated[list[str] | None, typer.Option(help="Of these elements alone: Li,Fe,O.")] = None,
    required_elements: Annotated[list[str] | None, typer.Option(help="With one of these elements.")] = None,
    excluded_elements: Annotated[list[str] | None, typer.Option(help="With none of these elements.")] = None,
    pareto: Annotated[
        list[str] | None,
        typer.Option(help="Two or more columns, what no other beats in all of them: energy_above_hull,-band_gap."),
    ] = None,
    per_system: Annotated[int | None, typer.Option(min=1, help="At most so many of one chemical system.")] = None,
    per_prototype: Annotated[int | None, typer.Option(min=1, help="At most so many of one prototype.")] = None,
    uncertainty_weight: Annotated[
        float, typer.Option(min=0.0, help="Rank by the value plus so many standard deviations.")
    ] = 0.0,
    known: Annotated[str | None, typer.Option(metavar="G.zarr", help="Graph store of known crystals.")] = None,
    output_format: Annotated[
        str, typer.Option("--format", help="Of cif, extxyz, parquet, vasp, vasp-static, zarr.")
    ] = "cif,zarr",
    store: Annotated[str | None, typer.Option(help="Graph store of the scores, if it was moved.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Choose the best structures of a screen, and write them.

    Only rows of status ok take part (unless the filter speaks of status); how many were left out for what reason is
    printed. Columns say which are charge-neutral, magnetic, of which prototype, and with --known which are new; they
    are computed for what comes through the other conditions and may stand in the filter, too.

        equiscreen select hull.zarr --out best --where "energy_above_hull < 0.05 and n_atoms <= 20" --top 100
    """
    from .screening.selection import select as selection

    found = selection.select(
        scores,
        out,
        where,
        top=top,
        by=by,
        allowed_elements=allowed_elements or (),
        required_elements=required_elements or (),
        excluded_elements=excluded_elements or (),
        pareto=pareto or (),
        per_system=per_system,
        per_prototype=per_prototype,
        uncertainty_weight=uncertainty_weight,
        known=known,
        formats=(output_format,),
        store=store,
        overwrite=overwrite,
        progress=True,
    )
    print(selection.summary(found, out))


@app.command()
def report(
    scores: Annotated[str, typer.Argument(metavar="S.zarr", help="Scores, relaxation, hull or selection; or a URL.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.  [default: S.report.html]")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    top: Annotated[int, typer.Option(min=1, max=500, help="How many of the best are shown.")] = 50,
    store: Annotated[str | None, typer.Option(help="Graph store of the structures, if it was moved.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page on a screen: counts, distributions, elements, the best with pictures, cost.

    The page needs no network and no other file. The best are those lowest above the hull: run `equiscreen hull` first.
    It needs `pip install 'equiscreen[report]'`.
    """
    from .screening import report as write_report

    page = write_report(scores, out, title=title, top=top, store=store, overwrite=overwrite)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


@app.command()
def info(
    path: Annotated[
        str, typer.Argument(help="A store or scores dataset, also at a URL; a run folder, checkpoint or ONNX model.")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Compute a graph store's checksums anew.")] = False,
) -> None:
    """Say what a file or folder is."""
    from .cli.info import describe, verify_store

    print(json.dumps(describe(path), indent=2))
    if verify:
        print(verify_store(path))


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def _resumable() -> Iterator[None]:
    """Tell that an interrupted run is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("equiscreen: interrupted; the same command goes on where it was", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line; mistakes of the user become one line and exit code 1."""
    try:
        app()
    except EquiscreenError as error:
        print(f"equiscreen: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "cpu,train")
        print(f"equiscreen: {error.name} is not installed: pip install 'equiscreen[{extra}]'", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        full = "the disk is full; make room and run the same command again" if error.errno == errno.ENOSPC else ""
        print(f"equiscreen: {full or error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
