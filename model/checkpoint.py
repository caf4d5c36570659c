"""Checkpoints of networks: everything needed to rebuild a network. Reading a checkpoint runs no code from the file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..pipeline.atomic import atomic_path, write_text_atomically
from ..pipeline.energy_schemes import OWN
from ..pipeline.errors import CheckpointError, EquiscreenError, detail
from .config.network import IMPORTED, AllegroConfig, Imported, MaceConfig, NequipConfig, NetworkConfig
from .networks.allegro import AllegroNetwork
from .networks.base import Network
from .networks.equivariant import EquivariantNetwork
from .networks.mace import MaceNetwork
from .networks.nequip import NequipNetwork
from .statistics import DataStatistics, GeometryStatistics, HeadStatistics

MODEL_SCHEMA, ENSEMBLE_SCHEMA = "equiscreen-model/1", "equiscreen-ensemble/1"
MODEL_FILE, ENSEMBLE_FILE = "model.ckpt", "ensemble.json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Metadata that a checkpoint stores beside the weights.

    Attributes:
        symmetry: Symmetry group under which the network is equivariant: ``o3`` or ``so3``.
        energy_scheme: Energy scheme of the model, which determines which other energies its predictions may be compared
            with.
        training_data: Hashes of the graph stores that the network was trained on, separated by spaces; empty for
            imported weights.
        validation: Mean absolute errors on the validation structures, keyed by name and unit.
        test: Mean absolute errors on the test structures; empty if there are none.
        mirror_violation: Largest difference of each output between structures and their mirror images, keyed by name
            and unit, for a network without parity; other structures may differ more.
        mirror_structures: Number of structures on which `mirror_violation` was measured.
        calibration: Root mean square of the ratio of error to spread, by output, for an ensemble; 1 means that the
            spread is well calibrated.
        origin: Provenance of imported weights: file and, if known, name, fidelity, functional, training data, licence
            and citation. For refitted reference energies, also the stores that they were fitted to. For a network that
            learned the predictions of another model, see `pipeline.store.labelling_model.LabellingModel.of_student`.
    """

    symmetry: str = "o3"
    energy_scheme: str = OWN
    training_data: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    mirror_violation: Mapping[str, float] = field(default_factory=dict)
    mirror_structures: int = 0
    calibration: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


def save_checkpoint(path: str | Path, network: Network, card: ModelCard) -> None:
    """Write a network and its model card to a file, atomically.

    Example:
        >>> from equiscreen.model import load_checkpoint, save_checkpoint
        >>> network, card = load_checkpoint("run/model.ckpt")
        >>> save_checkpoint("copy.ckpt", network, card)

    Args:
        path: File to write, in an existing folder.
        network: Network to save.
        card: Metadata to save with it.
    """
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
    with atomic_path(target) as scratch:
        torch.save(content, scratch)


def load_checkpoint(path: str | Path, dtype: torch.dtype | None = None) -> tuple[Network, ModelCard]:
    """Read a network and its model card without running any code from the file.

    Example:
        >>> from equiscreen.model import load_checkpoint
        >>> network, card = load_checkpoint("run/model.ckpt")
        >>> network.elements, card.energy_scheme
        ((13, 29), 'own')

    Args:
        path: Path of the checkpoint.
        dtype: Data type to convert the network to; None keeps the data type in the file.

    Returns:
        The network, on the CPU and in evaluation mode, and its model card.

    Raises:
        CheckpointError: The file is missing, damaged or not a checkpoint of this version of equiscreen.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint; `equiscreen train` and `equiscreen import` write checkpoints"
        )
    try:
        with zipfile.ZipFile(file) as archive:  # torch writes a checksum of each tensor but does not verify it
            damaged = archive.testzip()
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for a file that it did not write
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); copy the file again, or use one that "
            "`equiscreen train` or `equiscreen import` wrote"
        ) from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match; copy the file again")
    if not isinstance(content, dict) or content.get("schema") != MODEL_SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise CheckpointError(
            f"{path} is not a checkpoint of this version of equiscreen (schema {found!r} instead of {MODEL_SCHEMA!r}); "
            "use the model.ckpt of a run folder, or convert weights of another code with `equiscreen import`"
        )
    try:
        settings = content["network"]
        config = IMPORTED.get(settings.get("family"), NetworkConfig)(**settings)
        kind = dtype or _dtype(content["dtype"])
        network = make_network(config, content["elements"], _statistics(content["statistics"]), kind)
        network.load_state_dict(content["state"])
        return network.eval(), ModelCard(**content["card"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, EquiscreenError) as error:
        raise CheckpointError(
            f"{path} is damaged, or was written by another version of equiscreen ({detail(error)}); copy the file "
            "again, or write it again with this version"
        ) from error


def _statistics(content: Mapping[str, Any]) -> DataStatistics:
    heads = {
        name: HeadStatistics(
            tuple(head["shape"]), head["unit"], tuple(map(tuple, head["shifts"])), tuple(head["scales"])
        )
        for name, head in content["heads"].items()
    }
    geometry = content.get("geometry")  # checkpoints before 0.2 lack this entry
    return DataStatistics(
        tuple(content["reference_energies"]),
        tuple(content["energy_scales"]),
        content["mean_neighbors"],
        heads,
        GeometryStatistics(**geometry) if geometry is not None else None,
    )


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[name]


def make_network(
    config: NetworkConfig | Imported,
    elements: Sequence[int],
    statistics: DataStatistics,
    dtype: torch.dtype,
) -> Network:
    """Build an untrained network from its configuration.

    Args:
        config: Configuration of the network; its cutoff must be set.
        elements: Supported atomic numbers, in ascending order.
        statistics: Statistics of the training set.
        dtype: Data type of weights and features.

    Raises:
        ConfigError: A head needs irreps that the network never produces.
        ValueError: The cutoff is not set.
    """
    if isinstance(config, NequipConfig):
        return NequipNetwork(config, elements, statistics, dtype)
    if isinstance(config, MaceConfig):
        return MaceNetwork(config, elements, statistics, dtype)
    if isinstance(config, AllegroConfig):
        return AllegroNetwork(config, elements, statistics, dtype)
    return EquivariantNetwork(config, elements, statistics, dtype)


def find_checkpoints(path: str | Path) -> list[Path]:
    """List the checkpoints of a run folder: the network's own, or one for each member of an ensemble.

    Args:
        path: Run folder. A path that is not a folder is returned as the only entry; whether it exists is not checked.

    Raises:
        CheckpointError: The folder holds no finished model, or its ``ensemble.json`` is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    if (folder / ENSEMBLE_FILE).is_file():
        members = [folder / name / MODEL_FILE for name in _read_ensemble(folder)["members"]]
    else:
        members = [folder / MODEL_FILE]
    missing = [file for file in members if not file.is_file()]
    if missing and (folder / "zarr.json").is_file():
        raise CheckpointError(
            f"{folder} is a store, not a model; to train a model on a graph store, run `equiscreen train {folder} "
            "--out RUN`"
        )
    if missing:
        raise CheckpointError(
            f"{missing[0].parent}: there is no {MODEL_FILE} in this folder; to finish an interrupted run, run the same "
            "`equiscreen train` command again"
        )
    return members


def save_ensemble(folder: Path, members: Sequence[str], card: ModelCard) -> None:
    """Write ``ensemble.json``, the file that makes a folder of runs an ensemble.

    Args:
        folder: Run folder of the ensemble.
        members: Names of its subfolders, one per member.
        card: Model card of the ensemble.
    """
    content = {"schema": ENSEMBLE_SCHEMA, "members": list(members), "card": asdict(card)}
    write_text_atomically(folder / ENSEMBLE_FILE, json.dumps(content, indent=1))


def load_members(path: str | Path, dtype: torch.dtype | None = None) -> tuple[list[Network], ModelCard]:
    """Read a network, or all members of an ensemble, with the model card.

    Example:
        >>> from equiscreen.model import load_members
        >>> networks, card = load_members("ensemble")
        >>> len(networks)
        2

    Args:
        path: Path of a checkpoint, or of the run folder of a network or an ensemble.
        dtype: As in `load_checkpoint`.

    Returns:
        The networks, on the CPU and in evaluation mode, and the model card of the network or the ensemble.

    Raises:
        CheckpointError: As in `load_checkpoint` and `find_checkpoints`.
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
            raise ValueError(f"schema {content['schema']!r}, members {names}")  # noqa: TRY301 - reported as damage
        ModelCard(**content["card"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / ENSEMBLE_FILE} is damaged ({detail(error)}); delete this file, and run the same `equiscreen "
            "train` command again to restore it"
        ) from error
    return content


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Summarise a checkpoint or a run folder for `equiscreen info`.

    Returns:
        Plain values by name: the architecture, outputs, elements and statistics of the network (for an ensemble, of its
        first member), and the model card.

    Raises:
        CheckpointError: As in `load_members`.
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
