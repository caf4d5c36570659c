"""Setup of a training run: data, split, and the network before its first step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from ..data.replay import Replay, open_replay, replay
from ..data.splits import SUBSETS, Split, split_structures
from ..data.targets import head_labels, usable_structures
from ..data.training_data import TrainingData
from ..equivariance.tensors import parsed
from ..networks.base import Network
from ..networks.equivariant import EquivariantNetwork
from ..statistics import DataStatistics
from .finetune import merged_statistics, new_heads, starting_network, transfer
from .references import fit_references
from .run_folder import Recipe


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training run that is ready for its first step.

    Attributes:
        data: Stores, split, labels of heads, and replayed structures.
        network: The network, with the weights of the checkpoint if one is fine-tuned.
        known: Outputs that the checkpoint to fine-tune predicts; empty without one.
        notes: Notes for the user, one per line.
    """

    data: TrainingData
    network: Network
    known: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(stores: Sequence[GraphStore], recipe: Recipe, folder: Path) -> Prepared:
    """Find labels, split the structures, fit statistics, build the network, and label structures to replay.

    Args:
        stores: Stores to train on.
        recipe: Recipe of the run.
        folder: Run folder, which keeps the replayed structures.

    Raises:
        ConfigError: The stores do not fit the configuration.
        StoreError: The stores disagree on the shape or unit of a label, or the store to replay cannot be read.
        CheckpointError: The checkpoint to fine-tune cannot be read.
        ValueError: The cutoff of the recipe is not set.
    """
    config, training = recipe.config.network, recipe.config.training
    if config.cutoff is None:
        raise ValueError("the cutoff of the recipe is not set; build the recipe with `make_recipe`")
    heads = head_labels(stores, config.heads)
    usable = usable_structures(stores, energy=config.energy, heads=heads)
    if recipe.limit is not None:
        for chosen in usable:
            chosen[recipe.limit :] = False
    bound, atoms = without_isolated_atoms(stores, usable, config.cutoff) if config.energy else (usable, {})
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
    from_atoms = True
    predicted: tuple[str, ...] = ()
    replayed: Replay | None = None
    if training.fine_tune.checkpoint is None:
        network = make_network(config, elements, statistics, dtype)
    else:
        start = starting_network(training.fine_tune)
        fresh = new_heads(config, start)
        network, anew, from_atoms = _fine_tuned(
            stores, recipe, start, fresh, split, (elements, statistics), atoms, dtype
        )
        predicted = tuple(spec.name for spec in network.outputs if spec.name not in fresh)
        replayed = _replayed(folder, recipe, network, start.elements, split)
        elements = network.elements
    known = _of_known_elements(stores, split, elements)
    notes = [
        *_isolated(atoms, used=from_atoms),
        *_skipped_structures(stores, split, known, elements),
        *_unreachable_irreps(network),
    ]
    if replayed is not None:
        notes.append(
            f"training.fine_tune.replay: {replayed.n_training:,} structures of {training.fine_tune.replay} are trained "
            f"on, and {replayed.n_held_out:,} are held out"
        )
    if anew:
        notes.append(
            "training.fine_tune: new heads change the products of the network, so these weights start at random: "
            f"{', '.join(anew)}"
        )
    for name, head in heads.items():
        pairs = zip(stores, split.training, strict=True)
        count = sum(head.count_without_logarithm(store, chosen) for store, chosen in pairs)
        if count:
            notes.append(f"heads.{name}: {count:,} training labels that have no logarithm are skipped")
    return Prepared(TrainingData(tuple(stores), known, heads, replayed), network, predicted, tuple(notes))


def _fine_tuned(
    stores: Sequence[GraphStore],
    recipe: Recipe,
    start: Network,
    fresh: set[str],
    split: Split,
    of_data: tuple[tuple[int, ...], DataStatistics],
    atoms: Mapping[int, float],
    dtype: torch.dtype,
) -> tuple[Network, list[str], bool]:
    """Build the network with the weights of a checkpoint, and fit its reference energies to the new labels.

    Args:
        stores: Stores to train on.
        recipe: Recipe of the run.
        start: Network of the checkpoint.
        fresh: Heads that the checkpoint does not have, or defines differently.
        split: Split of the structures.
        of_data: Elements and statistics of the new data.
        atoms: Energies of isolated atoms (eV) by atomic number.
        dtype: Data type of the network.

    Returns:
        The network, the names of weights that start at random although the checkpoint has them, and whether energies of
        isolated atoms, if there are any, are the reference energies.
    """
    config, fine_tune = recipe.config.network, recipe.config.training.fine_tune
    elements, statistics = merged_statistics(*of_data, start, fresh)
    network = make_network(config, elements, statistics, dtype)
    transfer(network, start, (), fresh)
    fitted = set(elements) if fine_tune.references == "fit" else set(elements) - set(start.elements)
    used = True
    if config.energy and fitted:
        references, used = fit_references(network, stores, split.training, fitted, atoms)
        network = make_network(config, elements, replace(statistics, reference_energies=references), dtype)
    return network, transfer(network, start, fine_tune.freeze, fresh), used


def _replayed(folder: Path, recipe: Recipe, network: Network, elements: Sequence[int], split: Split) -> Replay | None:
    """Return the replayed structures, labelled by the network before its first step; None without replay."""
    training = recipe.config.training
    source = open_replay(training.fine_tune, network.cutoff)
    if source is None:
        return None
    try:
        return replay(
            folder,
            source,
            network,
            elements,
            training.fine_tune,
            count=sum(int(chosen.sum()) for chosen in split.training),
            seed=training.split.seed,
            identity=hashlib.sha256(json.dumps(recipe.identity, sort_keys=True).encode()).hexdigest(),
        )
    finally:
        network.train()  # labelling leaves it in evaluation mode


def without_isolated_atoms(
    stores: Sequence[GraphStore], usable: Sequence[NDArray[np.bool_]], cutoff: float
) -> tuple[list[NDArray[np.bool_]], dict[int, float]]:
    """Separate isolated atoms from the other usable structures.

    The network reproduces the reference energies exactly, so isolated atoms leave nothing to learn or to test.

    Args:
        stores: Graph stores.
        usable: bool[n_structures] for each store, structures with a usable label.
        cutoff: Cutoff of the network, angstrom.

    Returns:
        Masks of the other structures, bool[n_structures] for each store, and the energies of isolated atoms (eV) by
        atomic number.

    Raises:
        ConfigError: The isolated atoms of an element have different energies.
    """
    isolated = isolated_atoms(stores, usable, cutoff)
    atoms = energies_of_isolated_atoms(stores, isolated)
    return [chosen & ~alone for chosen, alone in zip(usable, isolated, strict=True)], atoms


def _isolated(atoms: Mapping[int, float], *, used: bool) -> list[str]:
    if not atoms:
        return []
    if not used:
        return [
            f"isolated atoms of {len(atoms)} elements are left out: the energies of the checkpoint are not relative to "
            "isolated atoms, so its reference energies are fitted to the other structures"
        ]
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
            f"{stores[0].path}: no validation structure consists only of elements in the training set; change "
            "training.split, or add structures"
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
    return [f"{lost:,} validation or test structures are skipped: no training structure contains {symbols}"]


def _unreachable_irreps(network: Network) -> list[str]:
    """Return a note on hidden irreps that were requested but that no interaction before the last produces."""
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
