"""The command `info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Graph store or scores dataset (a path or a URL), results folder, run folder, checkpoint or ONNX "
            "model.",
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Also verify the checksums of a graph store; other files cannot be verified."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all stored metadata as one JSON object.")] = False,
) -> None:
    """Describe a store, scores dataset, run folder, checkpoint or model.

    By default, the command prints the kind of file, the number of structures, the failures and their reasons, the
    model, and the source of the data. With --json, it prints all stored metadata: arrays and their units, settings,
    versions, and the results of checks.

    \b
    Example:
        equiscreen info candidates.zarr --verify
    """
    from .terminal.describe import describe, verify_store

    found = describe(path)
    checked = verify_store(path) if verify else None
    if as_json:
        print(json.dumps(found | ({"verified": checked} if checked else {}), indent=2))
        return
    from .terminal.about import about

    print(about(found))
    if checked:
        print(checked)
