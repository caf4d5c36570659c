"""Setup of a training run: data, split, and the network before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.store.graph_store import GraphStore
from ..checkpoint import make_network
from ..data.batches import of_elements
from ..data.fit_statistics import fit_statistics
from ..data.isolated_atoms import energies_of_isolated_atoms, isolated_atoms
from ..data.splits import SUBSETS, Split, split_structures
from ..data.targets import head_labels, usable_structures
from ..data.training_data import TrainingData
from ..equivariance.tensors import parsed
from ..networks.base import Network
from ..networks.equivariant import EquivariantNetwork
from .finetune import fit_references, merged_statistics, new_heads, starting_network, transfer
from .run_folder import Recipe


def prepare(stores: Sequence[GraphStore], recipe: Recipe) -> tuple[TrainingData, Network, tuple[str, ...]]:
    """Find labels, split the structures, fit statistics and build the network.

    Returns:
        The data, the network, and notes for the user, one per line.

    Raises:
        ConfigError: The stores do not fit the configuration.
        StoreError: The stores disagree on the shape or unit of a label.
        CheckpointError: The checkpoint to fine-tune cannot be read.
    """
    config, training = recipe.config.network, recipe.config.training
    if config.cutoff is None:
        raise ValueError("the cutoff of the recipe is not set; build the recipe with `make_recipe`")
    heads = head_labels(stores, config.heads)
    usable = usable_structures(stores, energy=config.energy, heads=heads)
    if recipe.limit is not None:
        for chosen in usable:
            chosen[recipe.limit :] = False
    bound, atoms = _without_isolated_atoms(stores, usable, config.cutoff) if config.energy else (usable, {})
    split = split_structures(stores, bound, training.split)
    elements, statistics = fit_statistics(
        stores,
        split.training,
        config.cutoff,
        energy=config.energy,
        heads=heads,
        energy_scale=training.energy_scale,
        known=atoms,
    )
    dtype = torch.float64 if training.dtype == "float64" else torch.float32
    anew: list[str] = []
    if training.fine_tune.checkpoint is None:
        network = make_network(config, elements, statistics, dtype)
    else:
        start = starting_network(training.fine_tune)
        fresh = new_heads(config, start)
        elements, statistics = merged_statistics(elements, statistics, start, fresh)
        network = make_network(config, elements, statistics, dtype)
        transfer(network, start, (), fresh)
        fitted = set(elements) if training.fine_tune.references == "fit" else set(elements) - set(start.elements)
        if config.energy and fitted:
            given = tuple(
                atoms.get(number, value) if number in fitted else value
                for number, value in zip(elements, statistics.reference_energies, strict=True)
            )
            network = make_network(config, elements, replace(statistics, reference_energies=given), dtype)
            transfer(network, start, (), fresh)
            if fitted - atoms.keys():
                given = fit_references(network, stores, split.training, fitted - atoms.keys())
            network = make_network(config, elements, replace(statistics, reference_energies=given), dtype)
        anew = transfer(network, start, training.fine_tune.freeze, fresh)
    known = _of_known_elements(stores, split, elements)
    notes = [*_isolated(atoms), *_skipped_structures(stores, split, known, elements), *_unreachable_irreps(network)]
    if anew:
        notes.append(
            "training.fine_tune: new heads change the products of the network; these weights start at random: "
            f"{', '.join(anew)}"
        )
    for name, head in heads.items():
        pairs = zip(stores, split.training, strict=True)
        count = sum(head.count_without_logarithm(store, chosen) for store, chosen in pairs)
        if count:
            notes.append(f"heads.{name}: skipped {count:,} training labels that have no logarithm")
    return TrainingData(tuple(stores), known, heads), network, tuple(notes)


def _without_isolated_atoms(
    stores: Sequence[GraphStore], usable: Sequence[NDArray[np.bool_]], cutoff: float
) -> tuple[list[NDArray[np.bool_]], dict[int, float]]:
    """The usable structures without isolated atoms, and the energies of isolated atoms (eV) by atomic number.

    The network reproduces the reference energies exactly, so isolated atoms leave nothing to learn or to test.

    Returns:
        bool[n_structures] for each store, and the energies.
    """
    isolated = isolated_atoms(stores, usable, cutoff)
    atoms = energies_of_isolated_atoms(stores, isolated)
    return [chosen & ~alone for chosen, alone in zip(usable, isolated, strict=True)], atoms


def _isolated(atoms: Mapping[int, float]) -> list[str]:
    if not atoms:
        return []
    listed = ", ".join(f"{chemical_symbols[number]} {energy:g} eV" for number, energy in sorted(atoms.items()))
    return [f"reference energies of isolated atoms: {listed}; these structures are left out of the split"]


def _of_known_elements(stores: Sequence[GraphStore], split: Split, elements: tuple[int, ...]) -> Split:
    """Drop structures with elements that the network does not support from a split.

    Raises:
        ConfigError: No validation structure is left.
    """
    supported = [of_elements(store, elements) for store in stores]
    kept = {
        name: tuple(chosen & known for chosen, known in zip(getattr(split, name), supported, strict=True))
        for name in SUBSETS
    }
    if not any(chosen.any() for chosen in kept["validation"]):
        raise ConfigError(
            f"{stores[0].path}: no validation structure consists only of elements in the training set; "
            "change training.split, or add structures"
        )
    return Split(**kept)


def _skipped_structures(
    stores: Sequence[GraphStore], split: Split, known: Split, elements: tuple[int, ...]
) -> list[str]:
    lost = sum(
        int(before.sum() - after.sum())
        for name in SUBSETS
        for before, after in zip(getattr(split, name), getattr(known, name), strict=True)
    )
    if not lost:
        return []
    unknown = sorted({int(number) for store in stores for number in store.elements} - set(elements))
    symbols = ", ".join(chemical_symbols[number] for number in unknown)
    return [f"skipped {lost:,} validation or test structures: no training structure contains {symbols}"]


def _unreachable_irreps(network: Network) -> list[str]:
    """Note on hidden irreps that were requested but that no interaction produces."""
    if not isinstance(network, EquivariantNetwork) or network.config.n_interactions == 1:
        return []
    config = network.config
    made = {ir for interaction in network.interactions[:-1] for ir in interaction.channels_out}  # type: ignore[union-attr]
    missing = [str(ir) for _, ir in parsed(config.hidden_irreps) if ir not in made]
    if not missing:
        return []
    return [
        "network.hidden_irreps: this network never produces "
        f"{', '.join(missing)}; raise `n_interactions` or `correlation`"
    ]
