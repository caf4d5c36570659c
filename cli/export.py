"""The verb `export`."""

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
            help="Outputs to keep: energy, forces, stress and names of heads; a model with the energy alone is "
            "evaluated in less than a third of the time.",
            show_default="all",
        ),
    ] = None,
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in float64 instead of float32; several times slower.")
    ] = False,
    average_mirror: Annotated[
        bool,
        typer.Option(
            "--average-mirror",
            help="Average a network without parity (SevenNet) with its mirror image, so that mirror images of a "
            "structure get the same energy; evaluating the model then takes twice the time.",
        ),
    ] = False,
    opset: Annotated[
        int, typer.Option(help="Version of the ONNX operator set, from 17 to 23; older runtimes need a lower one.")
    ] = 18,
    overwrite: Overwrite = False,
) -> None:
    """Export a network, with forces and stress, to an ONNX file.

    An ensemble also becomes a single file. The file is written only if its graph passes all checks: it contains no
    reducing scatter, agrees with PyTorch on new structures of different sizes, gives bit-identical results with one and
    two threads (in float64: identical up to rounding), and obeys the symmetries: rotations, reflections (unless the
    network has no parity), translations and permutations of atoms. The results are stored in the file's metadata;
    `equiscreen info model.onnx --json` prints them.

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
