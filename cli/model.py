"""The verbs that make checkpoints: `train`, `refit` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..pipeline.errors import ConfigError
from .interruption import resumable
from .options import Limit, Overwrite
from .terminal.account import account, shows_progress, tell


def train(
    out: Annotated[Path, typer.Option(help="Run folder to write; the trained network is its model.ckpt.")],
    stores: Annotated[
        list[str] | None,
        typer.Argument(metavar="G.zarr", help="Graph stores with energies (preferably with forces) or other labels."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the sections `network` and `training`; docs/training.md lists every key.",
            show_default="the default of every key",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Number of networks to train; more than one makes an ensemble with uncertainties."),
    ] = 1,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Fine-tune this model.ckpt or run folder (sets training.fine_tune.checkpoint in the config)."
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="G.zarr",
            help="While fine-tuning, also train on structures of this graph store, labelled by the model before the "
            "first step, so that its predictions for them "
            "hardly change (sets training.fine_tune.replay in the config).",
        ),
    ] = None,
    repeat: Annotated[
        Path | None,
        typer.Option(help="Repeat the run in this folder bit for bit; only --out and --overwrite may be added."),
    ] = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a network, or an ensemble of networks, on graph stores.

    The loss includes energies, forces, stresses and the labels of all heads, where the stores have them. An interrupted
    run resumes when you run the same command again, and ends with the same weights. The run folder keeps the
    configuration, the split, the logs (metrics.csv, TensorBoard) and plots of the errors. With several stores, --limit
    applies to each.

    \b
    Example:
        equiscreen train training.zarr --config config.yaml --out run
    """
    from .. import model
    from ..pipeline.runs.staging import check_place

    if repeat is not None:
        if stores or config or start or replay or limit or seeds > 1:
            raise ConfigError(
                "--repeat takes stores and settings from the run; remove the stores, --config, --from, --replay, "
                "--limit and --seeds"
            )
        with resumable():
            account(model.repeat(repeat, out, overwrite=overwrite, progress=shows_progress()))
        return
    if not stores:
        raise ConfigError("no graph stores to train on; give at least one G.zarr")
    settings = model.Config.load(config) if config else model.Config()
    if config and overwrite:
        check_place(out.resolve(), [config])
    if start is not None:
        settings = settings.starting_from(start)
    if replay is not None:
        settings = settings.replaying(replay)
    with resumable():
        if seeds > 1:
            account(
                model.train_ensemble(
                    stores, out, settings, members=seeds, limit=limit, overwrite=overwrite, progress=shows_progress()
                )
            )
        else:
            account(model.train(stores, out, settings, limit=limit, overwrite=overwrite, progress=shows_progress()))


def refit(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="M.ckpt", help="Checkpoint or run folder of the network to adapt.")
    ],
    stores: Annotated[
        list[str], typer.Argument(metavar="G.zarr", help="Graph stores with energies in the other DFT setting.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    energy_scheme: Annotated[
        str,
        typer.Option(
            help="Energy scheme of the new energies (the DFT settings that they follow): mp-uncorrected, "
            "mp2020-corrected, omat24, matpes-pbe, r2scan, or own (a scheme without a name)."
        ),
    ] = "own",
    overwrite: Overwrite = False,
) -> None:
    """Fit the reference energies of a network to another DFT setting.

    A network adds up atomic energies, which are relative to reference energies of the elements. These depend on the
    settings of the DFT calculations, and are fitted to the energies in the stores, by least squares; the weights,
    and with them all forces and stresses, stay as they are. To change the weights too, use `equiscreen train --from`,
    which refits the reference energies first.

    \b
    Example:
        equiscreen refit 7net-0.ckpt mine.zarr --out refitted.ckpt
    """
    from .. import model

    account(model.refit_references(checkpoint, stores, out, energy_scheme=energy_scheme, overwrite=overwrite))


def import_(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE",
            help="Name of published weights, as for `--model` of other verbs (`equiscreen models` lists them), or a "
            "weights file.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write.")] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="For a model with several fidelities or heads, the one to use, such as PBE or R2SCAN."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings of the network, YAML or JSON, if FILE holds only weights (.pt, .safetensors, .npz) or is a "
            "TorchScript archive that lacks a setting."
        ),
    ] = None,
    energy_scheme: Annotated[
        str | None,
        typer.Option(
            help="Energy scheme of the weights (the DFT settings that their energies follow): mp-uncorrected, "
            "mp2020-corrected, omat24, matpes-pbe, r2scan, or own (a scheme without a name).",
            show_default="that of known weights, else own",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run any code that the file contains; only for files that you trust.")
    ] = False,
    float32: Annotated[
        bool, typer.Option("--float32", help="Convert float64 weights to float32: several times faster.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the known weights and exit.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Import published weights as a checkpoint.

    `equiscreen export` and `equiscreen train --from` accept the checkpoint. Weights that no installed package holds are
    downloaded into the cache folder (environment variable EQUISCREEN_CACHE), and their SHA-256 is checked. SevenNet's
    .pth files, Nequix's .pt and .nqx files, .ckpt and .nequip.zip files of NequIP and Allegro, MACE's .model files and
    TorchScript archives that LAMMPS or CP2K run are read, whatever their names; the architecture is taken from the
    file. The energy scheme determines which energies the model's predictions may be compared with, and is stored in the
    checkpoint.

    \b
    Example:
        equiscreen import 7net-0 --out 7net-0.ckpt
        equiscreen export 7net-0.ckpt --out 7net-0.onnx
    """
    from ..campaigns.models.resolve import published_weights
    from ..model.pretrained.load import import_weights
    from ..model.pretrained.registry import REGISTRY, describe_registry
    from ..model.pretrained.unopened import UNOPENED, describe_unopened

    if list_:
        listed = f"{describe_registry()}\n{describe_unopened()}"
        account(listed, {"weights": [*REGISTRY.values()], "unopened": [*UNOPENED.values()]})
        return
    if source is None or out is None:
        raise typer.BadParameter("give a NAME or FILE and --out, or use --list")
    with resumable():  # an interrupted download resumes
        weights, modality = published_weights(source, modality, progress=shows_progress(), note=tell)
        text = import_weights(
            weights,
            out,
            modality=modality,
            energy_scheme=energy_scheme,
            trust=trust,
            config=config,
            float32=float32,
            overwrite=overwrite,
            note=tell,
        )
    account(text, path=out)
