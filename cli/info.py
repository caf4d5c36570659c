"""The verb `info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(
    path: Annotated[
        str,
        typer.Argument(help="Graph store or scores dataset (a path or a URL), run folder, checkpoint or ONNX model."),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Also recompute the checksums of a graph store and compare them.")
    ] = False,
) -> None:
    """Describe a store, scores, run folder, checkpoint or model.

    The description is JSON and holds everything that is stored about the file: arrays with units, settings,
    versions, where the data came from, and the results of checks.

    \b
    Example:
        equiscreen info candidates.zarr --verify
    """
    from .describe import describe, verify_store

    print(json.dumps(describe(path), indent=2))
    if verify:
        print(verify_store(path))
