"""The command `models`, and model names for the commands that take an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal.account import shows_progress, tell

if TYPE_CHECKING:
    from ..campaigns.models.catalog import CatalogModel

MODEL_HELP = (
    "ONNX file from `equiscreen export`, the name of published weights such as 7net-0 (`equiscreen models` lists "
    "them), or a checkpoint or run folder. Weights and checkpoints are exported to the cache on first use."
)


def onnx_file(model: str) -> Path:
    """Return the ONNX file of a model given by name or as a file; see `campaigns.models.resolve.model_file`."""
    from ..campaigns.models.resolve import model_file

    return model_file(model, progress=shows_progress(), note=tell)


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show only this model: NAME, NAME/FIDELITY (PBE or R2SCAN, for a multi-fidelity model) or NAME@HASH "
            "(HASH is the first 8 or more digits of the SHA-256 of the weights).",
            show_default=False,
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch",
            help="Prepare the model NAME for use: download its weights if needed, and export them to the cache.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """List the models that can be used by name.

    For each model, the list gives its purpose, energy scheme, training data, accuracy, licence, elements, cutoff,
    symmetry, size and speed, and the source of its weights. It also says whether the model is ready, which means that
    the package equiscreen-models or the cache folder (environment variable EQUISCREEN_CACHE) holds its ONNX file. Every
    command that runs a model accepts these names. The first use of a model that is not ready exports its weights, which
    takes half a minute and needs `pip install 'equiscreen[rank]'`.

    \b
    Example:
        equiscreen models 7net-0
    """
    from ..campaigns.models.cache import cache_folder
    from ..campaigns.models.catalog import CATALOG, find_model

    if fetch:
        if name is None:
            raise typer.BadParameter("--fetch needs the NAME of a model; `equiscreen models` lists the names")
        find_model(name)
        onnx_file(name)
    chosen = [*CATALOG.values()] if name is None else [find_model(name)]
    if as_json:
        described = [_described(model) for model in chosen]
        print(
            json.dumps(
                described[0] if name is not None else {"cache": str(cache_folder()), "models": described}, indent=2
            )
        )
    else:
        print("\n\n".join(_text(model) for model in chosen))
        if name is None:
            print(f"\nThe cache is {cache_folder()}.")


def _described(model: CatalogModel) -> dict[str, object]:
    from ..campaigns.models.resolve import ready_file

    ready = ready_file(model)
    return {**model.to_dict(), "ready": ready is not None, "file": None if ready is None else str(ready)}


def _text(model: CatalogModel) -> str:
    from ..campaigns.models.resolve import ready_file

    weights, ready = model.published, ready_file(model)
    speed = "speed not measured" if model.edges_per_second is None else f"{model.edges_per_second:,} edges/s on 2 cores"
    mirror = {
        None: "mirror images may differ",
        0.0: "mirror images have equal energies",
    }.get(model.mirror_violation, f"mirror images were found to differ by up to {model.mirror_violation:.4f} eV/atom")
    error = (
        "not known for energies above hull"
        if model.hull_error is None
        else f"{model.hull_error} eV/atom for the energies above hull of new crystals (RMSE, Matbench Discovery)"
    )
    also = f" (also {', '.join(weights.aliases)})" if weights.aliases else ""
    rows = {
        "good for": weights.purpose,
        "energies": f"{weights.functionals[model.fidelity]}, scheme {model.scheme}; trained on {weights.training_data}",
        "accuracy": error,
        "network": f"{weights.n_elements} elements, cutoff {weights.cutoff:g} angstrom, {speed}",
        "symmetry": f"{'SO(3)' if weights.symmetry == 'so3' else 'O(3)'}: {mirror}",
        "licence": f"{weights.licence}; {weights.citation}",
        "source": f"{model.source}, {weights.size / 1e6:.1f} MB, SHA-256 {model.sha256}",
        "ready": f"yes, {ready}" if ready is not None else "no; it is exported on first use",
    }
    return "\n".join([f"{model.name}{also}", *(f"  {title:<9} {text}" for title, text in rows.items())])
