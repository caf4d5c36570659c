"""Fine-tuning: combine the weights and statistics of a checkpoint with the elements and heads of new data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import ValidationError

from ...pipeline.errors import ConfigError
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.suggestions import unknown_name
from ..checkpoint import load_members
from ..config.config import Config
from ..config.network import Architecture, Imported, NetworkConfig
from ..config.training import FineTuneConfig
from ..networks.base import Network
from ..statistics import DataStatistics, GeometryStatistics, joint_minimum_distances


def starting_network(config: FineTuneConfig) -> Network:
    """Load the network to fine-tune.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: The checkpoint is an ensemble.
    """
    networks, _ = load_members(str(config.checkpoint))
    if len(networks) > 1:
        raise ConfigError(
            f"{config.checkpoint} is an ensemble; fine-tune one of its members, such as {config.checkpoint}/member-0"
        )
    return networks[0]


def architecture(config: Config, start: Network, stores: Sequence[GraphStore]) -> Config:
    """Return the configuration with the checkpoint's architecture, its heads that have labels, and the new heads.

    Args:
        config: Configuration of the run; its heads are added.
        start: Network of the checkpoint.
        stores: Stores to train on.

    Raises:
        ConfigError: The architecture does not support a new head.
    """
    if isinstance(start.config, Imported):
        if config.network.heads or not config.network.energy:
            raise ConfigError(
                f"{config.training.fine_tune.checkpoint}: networks with imported weights predict only energies, forces "
                "and stresses; remove `heads` and `energy: false` from `network`"
            )
        return config.model_copy(update={"network": start.config})
    labels = {name for store in stores for names in store.label_names for name in names}
    kept = {name: head for name, head in start.config.heads.items() if (head.label or name) in labels}
    network = start.config.model_copy(update={"heads": {**kept, **config.network.heads}})
    try:
        checked = NetworkConfig.model_validate(network.model_dump())
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{config.training.fine_tune.checkpoint}: the architecture of this checkpoint, which fine-tuning keeps, "
            f"cannot have the new heads ({reason}); train a new network instead"
        ) from error
    return config.model_copy(update={"network": checked})


def new_heads(config: Architecture, start: Network) -> set[str]:
    """Return the heads that the checkpoint does not have, or defines differently."""
    return {name for name, head in config.heads.items() if start.config.heads.get(name) != head}


def transfer(network: Network, start: Network, freeze: Sequence[str], anew: Collection[str] = ()) -> list[str]:
    """Copy the weights of `start` (per-element weights only for shared elements), and freeze some parameters.

    Args:
        network: Network of the same architecture, possibly with additional heads and other elements.
        start: Network to copy the weights from.
        freeze: Name prefixes of the parameters to freeze.
        anew: Heads whose weights are not copied.

    Returns:
        Names of weights that start at random although `start` has them: a new head with irreps that `start` does not
        have adds paths to the products, which changes the shape of their weights.

    Raises:
        ConfigError: A prefix matches no parameter, or nothing is left to train.
    """
    source = start.state_dict()
    place = {element: index for index, element in enumerate(start.elements)}
    common = [(row, place[element]) for row, element in enumerate(network.elements) if element in place]
    rows, from_rows = torch.tensor(common, dtype=torch.int64).reshape(-1, 2).unbind(1)
    others = []
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in source or name.split(".")[:2] in [["heads", head] for head in anew]:
                continue
            if is_by_element(name):
                parameter[rows] = source[name][from_rows].to(parameter.dtype)
            elif is_by_pair(name):
                parameter[rows.unsqueeze(1), rows] = source[name][from_rows.unsqueeze(1), from_rows].to(parameter.dtype)
            elif source[name].shape == parameter.shape:
                parameter.copy_(source[name])
            else:
                others.append(name)
    for beginning in freeze:
        names = [name for name, _ in network.named_parameters()]
        frozen = [parameter for name, parameter in network.named_parameters() if f"{name}.".startswith(f"{beginning}.")]
        if not frozen:
            parts = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)})
            raise ConfigError(f"training.fine_tune.freeze: {unknown_name('parameter prefix', beginning, parts)}")
        for parameter in frozen:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(
            f"training.fine_tune.freeze: freezing {', '.join(freeze)} leaves nothing to train; freeze fewer parameters"
        )
    return others


def is_by_element(name: str) -> bool:
    """Whether a parameter has a row for each element of the network."""
    ends = (".receiver_scale.weight", ".skip_table", ".send_scale", ".contraction.weights", ".receiver", ".sender")
    if name in {"embedding.weight", "embedding", "sent", "sum_scales"} or name.endswith(ends):
        return True
    return ".by_element." in name or ".skip_by_element." in name


def is_by_pair(name: str) -> bool:
    """Whether a parameter has a row and a column for each element of the network."""
    return name == "embedding.splines"


def merged_statistics(
    elements: Sequence[int], fitted: DataStatistics, start: Network, anew: Collection[str]
) -> tuple[tuple[int, ...], DataStatistics]:
    """Merge the statistics of the data and the checkpoint for the elements of both; the checkpoint takes precedence.

    The weights were learned with the checkpoint's scales and mean number of neighbours; new heads use the statistics of
    the data.

    Args:
        elements: Elements of the data.
        fitted: Statistics fitted to the data.
        start: Network of the checkpoint.
        anew: Heads that the checkpoint does not have, or defines differently.

    Raises:
        ConfigError: The unit of a head's labels differs from its unit in the checkpoint.
    """
    together = tuple(sorted({*elements, *start.elements}))
    old = start.statistics
    of_data = {element: index for index, element in enumerate(elements)}
    of_start = {element: index for index, element in enumerate(start.elements)}

    def each(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
        return tuple(
            first[of_start[element]] if element in of_start else second[of_data[element]] for element in together
        )

    heads = {}
    for name, fresh in fitted.heads.items():
        head, known = (fresh, of_data) if name in anew else (old.heads[name], of_start)
        if head.unit != fresh.unit:
            raise ConfigError(
                f"heads.{name}: labels are in {fresh.unit!r}, but the checkpoint uses {head.unit!r}; featurize the "
                "structures again with labels in the checkpoint's unit"
            )
        mean = tuple(np.mean(head.shifts, axis=0).tolist())
        shifts = tuple(head.shifts[known[element]] if element in known else mean for element in together)
        heads[name] = replace(head, shifts=shifts)
    scale = float(np.mean(old.energy_scales))
    return together, DataStatistics(
        each(old.reference_energies, fitted.reference_energies),
        each(old.energy_scales, [scale] * len(of_data)),
        old.mean_neighbors,
        heads,
        _merged_geometry(old.geometry, fitted.geometry),
    )


def _merged_geometry(start: GeometryStatistics | None, data: GeometryStatistics | None) -> GeometryStatistics | None:
    """Return the density and size of the new data, and the smallest distances in both; None if either is unknown."""
    distances = joint_minimum_distances([start, data])
    return None if data is None or distances is None else replace(data, minimum_distances=distances)
