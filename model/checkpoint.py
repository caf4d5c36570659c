"""Checkpoints of networks: weights with everything needed to rebuild the network, readable without unpickling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..pipeline.atomic import write_text_atomically
from ..pipeline.energy_schemes import OWN
from ..pipeline.errors import CheckpointError, EquiscreenError, detail
from .config.network import NequipConfig, NetworkConfig
from .networks.base import Network
from .networks.equivariant import EquivariantNetwork
from .networks.nequip import NequipNetwork
from .statistics import DataStatistics, HeadStatistics

MODEL_SCHEMA, ENSEMBLE_SCHEMA = "equiscreen-model/1", "equiscreen-ensemble/1"
MODEL_FILE, ENSEMBLE_FILE = "model.ckpt", "ensemble.json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a checkpoint says of its network besides the weights.

    Attributes:
        symmetry: Group under which the network is equivariant.
        energy_scheme: Which energies it speaks; decides what they may be compared with.
        training_data: Hash of the graph store that it was trained on.
        validation: Mean absolute errors, by name with unit.
        test: The same on the test structures, if there are any.
        mirror_violation: Largest changes under a mirror, by output with unit, of a network without parity.
        calibration: Of an ensemble's spread, by output: root mean square of error over spread.
        origin: Of imported weights: name, file, fidelity, functional, training data, licence, citation.
    """

    symmetry: str = "o3"
    energy_scheme: str = OWN
    training_data: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    mirror_violation: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


def save_checkpoint(path: str | Path, network: Network, card: ModelCard) -> None:
    """Write a network to a file, whole or not at all."""
    target = Path(path)
    content = {
        "schema": MODEL_SCHEMA,
        "network": network.config.model_dump(mode="json"),
        "elements": list(network.elements),
        "statistics": asdict(network.statistics),
        "card": asdict(card),
        "dtype": str(network.dtype).removeprefix("torch."),
        "state": {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()},
    }
    scratch = target.with_name(f".{target.name}.tmp")
    torch.save(content, scratch)
    scratch.rename(target)


def load_checkpoint(path: str | Path, dtype: torch.dtype | None = None) -> tuple[Network, ModelCard]:
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
        given = content["network"]
        config = NequipConfig(**given) if given.get("family") == "nequip" else NetworkConfig(**given)
        kind = dtype or _dtype(content["dtype"])
        network = make_network(config, content["elements"], _statistics(content["statistics"]), kind)
        network.load_state_dict(content["state"])
        return network.eval(), ModelCard(**content["card"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, EquiscreenError) as error:
        raise CheckpointError(f"{path}: damaged: {detail(error)}") from error


def _statistics(content: Mapping[str, Any]) -> DataStatistics:
    heads = {
        name: HeadStatistics(
            tuple(head["shape"]), head["unit"], tuple(map(tuple, head["shifts"])), tuple(head["scales"])
        )
        for name, head in content["heads"].items()
    }
    return DataStatistics(
        tuple(content["reference_energies"]), tuple(content["energy_scales"]), content["mean_neighbors"], heads
    )


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[name]


def make_network(
    config: NetworkConfig | NequipConfig, elements: Sequence[int], statistics: DataStatistics, dtype: torch.dtype
) -> Network:
    """An untrained network of an architecture.

    Raises:
        ConfigError: A head needs irreps that the network never makes.
    """
    if isinstance(config, NequipConfig):
        return NequipNetwork(config, elements, statistics, dtype)
    return EquivariantNetwork(config, elements, statistics, dtype)


def find_checkpoints(path: str | Path) -> list[Path]:
    """The checkpoint at a path, or those of the run folder of a network or of an ensemble.

    Raises:
        CheckpointError: A run folder without a finished model.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    if (folder / ENSEMBLE_FILE).is_file():
        members = [folder / name / MODEL_FILE for name in _read_ensemble(folder)["members"]]
    else:
        members = [folder / MODEL_FILE]
    missing = [file for file in members if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{missing[0].parent}: a folder without {MODEL_FILE}; run the same `equiscreen train` again to finish it"
        )
    return members


def save_ensemble(folder: Path, members: Sequence[str], card: ModelCard) -> None:
    """Say that some runs inside a folder are an ensemble; only then it is one."""
    content = {"schema": ENSEMBLE_SCHEMA, "members": list(members), "card": asdict(card)}
    write_text_atomically(folder / ENSEMBLE_FILE, json.dumps(content, indent=1))


def load_members(path: str | Path, dtype: torch.dtype | None = None) -> tuple[list[Network], ModelCard]:
    """Read the network, or all networks of the ensemble, at a path, and the card of the whole.

    Raises:
        CheckpointError: As for `load_checkpoint` and `find_checkpoints`.
    """
    loaded = [load_checkpoint(file, dtype) for file in find_checkpoints(path)]
    networks = [network for network, _ in loaded]
    if len(networks) == 1:
        return networks, loaded[0][1]
    return networks, ModelCard(**_read_ensemble(Path(path))["card"])


def _read_ensemble(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / ENSEMBLE_FILE).read_text())
        names = [str(name) for name in content["members"]]
        if (
            content["schema"] != ENSEMBLE_SCHEMA
            or len(names) < 2
            or any(name == ".." or Path(name).name != name for name in names)
        ):
            raise ValueError(content["schema"])  # noqa: TRY301 - told as any other damage
        ModelCard(**content["card"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ENSEMBLE_FILE}: damaged: {detail(error)}") from error
    return content


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Facts on a checkpoint, for people.

    Raises:
        CheckpointError: As for `load_checkpoint`.
    """
    networks, card = load_members(path)
    network = networks[0]
    return {
        "path": str(path),
        "schema": MODEL_SCHEMA,
        "members": len(networks),
        "outputs": [asdict(spec) for spec in network.outputs],
        "network": network.config.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "elements": list(network.elements),
        **asdict(network.statistics),
        **asdict(card),
    }
