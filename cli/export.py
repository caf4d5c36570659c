"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite
from .terminal.account import account, tell


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="M.ckpt", help="Checkpoint, or the run folder of a network or an ensemble.")
    ],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    outputs: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Outputs to keep: any of energy, forces, stress and the names of heads; a model that predicts only "
            "the energy is more than three times as fast.",
            show_default="all",
        ),
    ] = None,
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in float64 instead of float32; this is several times slower.")
    ] = False,
    average_mirror: Annotated[
        bool,
        typer.Option(
            "--average-mirror",
            help="Average a network without parity (such as SevenNet's) with its mirror image, so that mirror images "
            "of a structure get the same energy; the model then takes twice as long to evaluate.",
        ),
    ] = False,
    opset: Annotated[
        int, typer.Option(help="Version of the ONNX operator set, from 17 to 23; older runtimes need a lower version.")
    ] = 18,
    overwrite: Overwrite = False,
) -> None:
    """Export a network, with forces and stress, to an ONNX file.

    An ensemble is exported to a single file. The file is written only if the ONNX graph passes all checks: it contains
    no scatter operation with a reduction (such as scatter-add), agrees with PyTorch on new structures of different
    sizes, gives bit-identical results with one and two threads (in float64: identical up to rounding), and obeys the
    symmetries: rotations, reflections (unless the network has no parity), translations and permutations of atoms. The
    results of the checks are stored in the file's metadata; `equiscreen info model.onnx --json` prints them.

    \b
    Example:
        equiscreen export run --out model.onnx
    """
    from ..export.exporter import export_onnx

    wanted = None if outputs is None else [name.strip() for name in outputs.split(",") if name.strip()]
    report = export_onnx(
        checkpoint,
        out,
        outputs=wanted,
        float64=float64,
        average_mirror=average_mirror,
        opset=opset,
        overwrite=overwrite,
        note=tell,
    )
    account(report)
