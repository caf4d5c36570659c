"""The commands that make checkpoints: `train`, `refit` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..pipeline.errors import ConfigError
from .options import Limit, Overwrite
from .terminal.account import account, shows_progress, tell
from .terminal.interruption import resumable


def train(
    out: Annotated[
        Path,
        typer.Option(
            help="Run folder to write; the trained network is model.ckpt in it or, for an ensemble, in each of its "
            "member-N folders."
        ),
    ],
    stores: Annotated[
        list[str] | None,
        typer.Argument(metavar="G.zarr", help="Graph stores with energies (preferably also forces) or other labels."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the sections `network` and `training`; docs/training.md lists every key.",
            show_default="all keys have their default values",
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
            help="While fine-tuning, also train on structures from this graph store, labelled with the original "
            "model's predictions, so that the predictions for them hardly change (sets training.fine_tune.replay in "
            "the config).",
        ),
    ] = None,
    repeat: Annotated[
        Path | None,
        typer.Option(
            help="Repeat the run in this folder bit for bit; the stores and settings are read from it and must not be "
            "given."
        ),
    ] = None,
    limit: Limit = None,
    overwrite: Annotated[
        bool,
        typer.Option(help="Replace an existing --out; an unfinished run with the same settings is resumed instead."),
    ] = False,
) -> None:
    """Train a network, or an ensemble of networks, on graph stores.

    The loss includes energies, forces, stresses and the labels of all heads, where the stores have them. An interrupted
    run resumes when you run the same command again, and ends with the same weights as an uninterrupted run. The run
    folder keeps the configuration, the split, the logs (metrics.csv, TensorBoard) and plots of the errors. With several
    stores, --limit applies to each.

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
        list[str],
        typer.Argument(metavar="G.zarr", help="Graph stores with energies computed with the new DFT settings."),
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="Energy scheme of the new energies (DFT settings and energy corrections): mp-uncorrected, "
            "mp2020-corrected, omat24, matpes-pbe, r2scan, or own (any other scheme)."
        ),
    ] = "own",
    overwrite: Overwrite = False,
) -> None:
    """Refit the reference energies of a network to different DFT settings.

    A network predicts energies relative to a reference energy for each element. The reference energies depend on the
    DFT settings; this command fits them to the energies in the stores by least squares. The weights, and with them all
    forces and stresses, stay the same. To change the weights too, use `equiscreen train --from`, which refits the
    reference energies first.

    \b
    Example:
        equiscreen refit 7net-0.ckpt mine.zarr --out refitted.ckpt
    """
    from .. import model

    account(model.refit_references(checkpoint, stores, out, scheme=scheme, overwrite=overwrite))


def import_(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE",
            help="Name of published weights (`equiscreen models` lists them), or a weights file.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write.")] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="Fidelity or head to use, such as PBE or R2SCAN, if the model has several."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file with the settings of the network, if FILE holds only the weights of a MACE network "
            "(.pt, .safetensors, .npz) or is a TorchScript archive that lacks a setting."
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="Energy scheme of the weights (DFT settings and energy corrections): mp-uncorrected, "
            "mp2020-corrected, omat24, matpes-pbe, r2scan, or own (any other scheme).",
            show_default="the published scheme for known weights, otherwise own",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code in the file run while it is read; only for files that you trust.")
    ] = False,
    float32: Annotated[
        bool,
        typer.Option(
            "--float32", help="Convert float64 weights to float32, which makes the network several times faster."
        ),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the known weights and exit.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Import published weights as a checkpoint.

    Use the checkpoint with `equiscreen export` or `equiscreen train --from`. Published weights that ship with the
    package sevenn are read from it; the others are downloaded into the cache folder (environment variable
    EQUISCREEN_CACHE), and their SHA-256 is checked. SevenNet .pth files, Nequix .pt and .nqx files, NequIP and Allegro
    .ckpt and .nequip.zip files, MACE .model files, and TorchScript archives made for LAMMPS or CP2K can be read, and
    MACE weights alone if --config gives the settings of their network. The format is recognised from the content, not
    from the file name. The energy scheme determines which other energies the model's predictions may be compared with;
    it is stored in the checkpoint.

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
            scheme=scheme,
            trust=trust,
            config=config,
            float32=float32,
            overwrite=overwrite,
            note=tell,
        )
    account(text, path=out)
