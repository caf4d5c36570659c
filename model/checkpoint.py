"""Checkpoints of networks: weights with everything needed to rebuild the network, readable without unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..pipeline.errors import CheckpointError, detail
from .config import NetworkConfig
from .network import DataStatistics, EquivariantNetwork

MODEL_SCHEMA = "equiscreen-model/1"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a checkpoint says of its network besides the weights.

    Attributes:
        symmetry: Group under which the network is equivariant.
        energy_scheme: Which energies it speaks; decides what they may be compared with.
        training_data: Hash of the graph store that it was trained on.
        validation: Mean absolute errors, by name with unit.
    """

    symmetry: str = "o3"
    energy_scheme: str = "own"
    training_data: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)


def save_checkpoint(path: str | Path, network: EquivariantNetwork, card: ModelCard) -> None:
    """Write a network to a file, whole or not at all."""
    target = Path(path)
    content = {
        "schema": MODEL_SCHEMA,
        "network": network.config.model_dump(mode="json"),
        "elements": list(network.elements),
        "statistics": asdict(network.statistics),
        "card": {**asdict(card), "validation": dict(card.validation)},
        "dtype": str(network.dtype).removeprefix("torch."),
        "state": {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()},
    }
    scratch = target.with_name(f".{target.name}.tmp")
    torch.save(content, scratch)
    scratch.rename(target)


def load_checkpoint(path: str | Path, dtype: torch.dtype | None = None) -> tuple[EquivariantNetwork, ModelCard]:
    """Read a network, in evaluation mode and in the dtype given (None: in its own).

    The file is read with `weights_only`: it cannot run code.

    Raises:
        CheckpointError: Missing, damaged, or no checkpoint of ours.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise CheckpointError(f"{path}: not a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("schema") != MODEL_SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise CheckpointError(f"{path}: schema {found!r} where {MODEL_SCHEMA!r} is wanted")
    try:
        statistics = dict(content["statistics"])
        statistics["reference_energies"] = tuple(statistics["reference_energies"])
        network = EquivariantNetwork(
            NetworkConfig(**content["network"]),
            content["elements"],
            DataStatistics(**statistics),
            dtype or _dtype(content["dtype"]),
        )
        network.load_state_dict(content["state"])
        return network.eval(), ModelCard(**content["card"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged: {detail(error)}") from error


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[name]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at a path, which may be a run folder.

    Raises:
        CheckpointError: A run folder without a finished model.
    """
    file = Path(path)
    if not file.is_dir():
        return file
    inside = file / "model.ckpt"
    if not inside.is_file():
        raise CheckpointError(
            f"{path}: a folder without model.ckpt; run the same `equiscreen train` again to finish it"
        )
    return inside


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Facts on a checkpoint, for people.

    Raises:
        CheckpointError: As for `load_checkpoint`.
    """
    file = find_checkpoint(path)
    network, card = load_checkpoint(file)
    return {
        "path": str(file),
        "schema": MODEL_SCHEMA,
        "network": network.config.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "elements": list(network.elements),
        **asdict(network.statistics),
        **asdict(card),
    }
