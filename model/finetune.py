"""Fine-tuning: weights of a checkpoint, under the elements, heads and reference energies of new data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray

from ..pipeline.block import GraphBlock
from ..pipeline.errors import ConfigError
from ..pipeline.labels import ENERGY
from ..pipeline.reading import EpochReader
from ..pipeline.store import GraphStore
from .checkpoint import load_members
from .config import Config, FineTuneConfig, NetworkConfig
from .network import EquivariantNetwork
from .potential import TorchPotential
from .statistics import DataStatistics

# Enough to fit a number for each element.
REFERENCE_STRUCTURES = 2_000


def starting_network(config: FineTuneConfig) -> EquivariantNetwork:
    """The network of a checkpoint.

    Raises:
        CheckpointError: No checkpoint.
        ConfigError: An ensemble.
    """
    networks, _ = load_members(str(config.checkpoint))
    if len(networks) > 1:
        raise ConfigError(f"{config.checkpoint}: an ensemble; fine-tune its members, {config.checkpoint}/member-0, ...")
    return networks[0]


def architecture(config: Config, start: EquivariantNetwork, stores: Sequence[GraphStore]) -> Config:
    """The configuration with the architecture of the checkpoint, its heads that the stores have labels for, and others.

    Args:
        config: Whose heads come in addition.
        start: The network of the checkpoint.
        stores: To train on.
    """
    labels = {name for store in stores for names in store.label_names for name in names}
    kept = {name: head for name, head in start.config.heads.items() if (head.label or name) in labels}
    network = start.config.model_copy(update={"heads": {**kept, **config.network.heads}})
    checked = NetworkConfig.model_validate(network.model_dump())
    return config.model_copy(update={"network": checked})


def transfer(network: EquivariantNetwork, start: EquivariantNetwork, freeze: Sequence[str]) -> list[str]:
    """Copy the weights of `start`, those of its elements where they belong to elements, and freeze some.

    Args:
        network: Of the same architecture, maybe with more heads and other elements.
        start: Where the weights come from.
        freeze: Beginnings of names of parameters.

    Returns:
        Names of weights that begin anew though `start` has them: a new head with irreps that `start` lacks gives
        products more paths, and their weights another shape.

    Raises:
        ConfigError: A beginning that no parameter has, or nothing left to train.
    """
    source = start.state_dict()
    place = {element: index for index, element in enumerate(start.elements)}
    common = [(row, place[element]) for row, element in enumerate(network.elements) if element in place]
    rows, from_rows = torch.tensor(common, dtype=torch.int64).reshape(-1, 2).unbind(1)
    anew = []
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in source:
                continue
            if _is_by_element(name):
                parameter[rows] = source[name][from_rows].to(parameter.dtype)
            elif source[name].shape == parameter.shape:
                parameter.copy_(source[name])
            else:
                anew.append(name)
    for beginning in freeze:
        names = [name for name, _ in network.named_parameters()]
        frozen = [parameter for name, parameter in network.named_parameters() if f"{name}.".startswith(f"{beginning}.")]
        if not frozen:
            parts = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)})
            near = get_close_matches(beginning, parts, 1)
            known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(parts)}"
            raise ConfigError(f"training.fine_tune.freeze: no parameter begins with {beginning!r}; {known}")
        for parameter in frozen:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"training.fine_tune.freeze: {', '.join(freeze)} leave nothing to train")
    return anew


def _compositions(block: GraphBlock, elements: Sequence[int]) -> NDArray[np.float64]:
    """float64[n_structures, n_elements], numbers of atoms."""
    of_element = (np.bincount(block.atom_structure[block.atomic_number == z], minlength=len(block)) for z in elements)
    return np.stack(list(of_element), axis=1).astype(np.float64)


def _is_by_element(name: str) -> bool:
    return name == "embedding.weight" or name.endswith(".receiver_scale.weight")


def merged_statistics(
    elements: Sequence[int], fitted: DataStatistics, start: EquivariantNetwork, new_heads: Collection[str]
) -> tuple[tuple[int, ...], DataStatistics]:
    """Statistics for the elements of data and checkpoint: the checkpoint's, where it has them.

    Weights were learned under the checkpoint's scales and number of neighbours; new heads have those of the data.

    Args:
        elements: Of the data.
        fitted: To the data.
        start: The network of the checkpoint.
        new_heads: Names that the checkpoint lacks, or that are to be learned anew.
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
        new = name in new_heads or name not in old.heads
        head, known = (fresh, of_data) if new else (old.heads[name], of_start)
        mean = tuple(np.mean(head.shifts, axis=0).tolist())
        shifts = tuple(head.shifts[known[element]] if element in known else mean for element in together)
        heads[name] = replace(head, shifts=shifts)
    scale = float(np.mean(old.energy_scales))
    return together, DataStatistics(
        each(old.reference_energies, fitted.reference_energies),
        each(old.energy_scales, [scale] * len(of_data)),
        old.mean_neighbors,
        heads,
    )


def fit_references(
    network: EquivariantNetwork, stores: Sequence[GraphStore], chosen: Sequence[NDArray[np.bool_]]
) -> tuple[float, ...]:
    """Reference energies that fit new labels best with the rest of the network as it is.

    Corrections to the present ones are solved for by least squares on the composition; elements that the labelled
    structures lack keep theirs.

    Args:
        network: With weights.
        stores: Of the new labels.
        chosen: bool[n_structures] for each store.

    Returns:
        eV, for each element of the network.
    """
    potential = TorchPotential(network)
    counts, rests, seen = [], [], 0
    reader = EpochReader(stores, chosen, shuffle=(0, 0), labels=(ENERGY,))
    for rows in reader.blocks(64):
        labels = rows.block.structure_labels.get(ENERGY)
        known = np.flatnonzero(np.isfinite(labels)) if labels is not None else np.zeros(0, dtype=np.int64)
        if len(known):
            block = rows.block.take(known)
            counts.append(_compositions(block, network.elements))
            rests.append(block.structure_labels[ENERGY] - potential.evaluate(block).energy)
        seen += len(known)
        if seen >= REFERENCE_STRUCTURES:
            break
    if not counts:
        return network.statistics.reference_energies
    change = np.linalg.lstsq(np.concatenate(counts), np.concatenate(rests), rcond=None)[0]
    return tuple((np.array(network.statistics.reference_energies) + change).tolist())
