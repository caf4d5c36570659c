"""Reference energies of a trained network, refitted to other labels with all weights fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ...pipeline.energy_schemes import OWN, SCHEMES
from ...pipeline.errors import ConfigError
from ...pipeline.labels.quantities import ENERGY
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.staging import ZIP, check_file
from ...pipeline.store.epoch_reader import EpochReader
from ...pipeline.store.graph_store import GraphStore
from ..checkpoint import load_members, save_checkpoint
from ..data.batches import compositions, element_counts, of_elements
from ..data.isolated_atoms import isolated_atoms
from ..data.training_data import open_stores
from ..networks.base import Network
from ..networks.torch_potential import TorchPotential

# Reference energies are fitted to at least the first number of structures and less than twice as many. At least the
# second number of structures contain each element. If there are fewer, all are used.
REFERENCE_STRUCTURES, LEAST_STRUCTURES = 2_000, 10
# Energies of isolated atoms replace fitted reference energies if they raise the mean error by at most this (eV/atom).
ATOMS_MAY_COST = 0.05


@dataclass(frozen=True, slots=True)
class RefitReport:
    """Result of refitting reference energies.

    Example:
        >>> from equiscreen.model import refit_references
        >>> report = refit_references("run", "training.zarr", "refitted.ckpt")
        >>> report.refitted, report.kept, report.energy_scheme
        (('Al', 'Cu'), (), 'own')

    Attributes:
        checkpoint: Path of the new checkpoint.
        refitted: Elements with new reference energies.
        kept: Elements that keep their reference energies because no structure used in the fit contains them.
        n_structures: Number of structures to which the reference energies were fitted.
        n_skipped: Number of structures that have an energy, but contain elements that the network does not support.
        before: Mean absolute error of the energies of the fitted structures before the fit (eV/atom).
        after: The same error after the fit (eV/atom).
        energy_scheme: Energy scheme of the new checkpoint.
    """

    checkpoint: Path
    refitted: tuple[str, ...]
    kept: tuple[str, ...]
    n_structures: int
    n_skipped: int
    before: float
    after: float
    energy_scheme: str

    def __str__(self) -> str:
        kept = (
            f"; {len(self.kept)} other elements keep their reference energies, since no energies are available for them"
            if self.kept
            else ""
        )
        skipped = f"; skipped {self.n_skipped:,} structures with other elements" if self.n_skipped else ""
        return (
            f"{self.checkpoint}: reference energies of {', '.join(self.refitted)} fitted to {self.n_structures:,} "
            f"structures, energies {self.energy_scheme}; energy MAE {self.before:.4g} eV/atom before, {self.after:.4g} "
            f"eV/atom after{kept}{skipped}"
        )


def refit_references(
    checkpoint: str | Path,
    stores: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    scheme: str = OWN,
    overwrite: bool = False,
) -> RefitReport:
    """Adapt the reference energies of a network to different DFT settings; its weights do not change.

    The corrections are the least-squares fit of the errors of the total energies to composition, on a sample of about
    2,000 to 4,000 structures, or on all structures if there are fewer. Forces and stresses do not change. Isolated
    atoms are not part of the fit.

    Example:
        >>> from equiscreen.model import refit_references
        >>> refit_references("run/model.ckpt", "training.zarr", "refitted.ckpt", scheme="r2scan").n_structures
        40

    Args:
        checkpoint: Checkpoint or run folder of a network that predicts an energy.
        stores: One graph store or several, with energies computed with the new DFT settings.
        out: Checkpoint to write.
        scheme: Energy scheme of the new labels, one of `SCHEMES`.
        overwrite: Whether to replace an existing checkpoint.

    Raises:
        ConfigError: The checkpoint is an ensemble or predicts no energy, the energy scheme is unknown, or the stores
            have a cutoff below the network's or no energy of a structure of its elements.
        CheckpointError: The checkpoint cannot be read.
        StoreError: A store cannot be read.
        OutputExistsError: The output already exists, is a folder or a URL, or is an input.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown --scheme {scheme}; choose one of {', '.join(SCHEMES)}")
    graphs = open_stores(stores)
    target = check_file(out, [checkpoint, *(store.path for store in graphs)], overwrite=overwrite, begins=ZIP)
    networks, card = load_members(checkpoint)
    if len(networks) > 1:
        raise ConfigError(f"{checkpoint} is an ensemble; refit its members, such as {checkpoint}/member-0, one by one")
    (network,) = networks
    chosen, n_skipped = _labelled(network, graphs, str(checkpoint))
    errors = energy_errors(network, graphs, chosen, set(network.elements))
    corrections = errors.fit(range(len(network.elements)), {})
    references = tuple((np.array(network.statistics.reference_energies) + corrections).tolist())
    network.statistics = replace(network.statistics, reference_energies=references)
    network.reference_energies.copy_(torch.tensor(references, dtype=torch.float64))
    for store in graphs:
        store.check_unchanged()
    # Errors of energies that were measured earlier do not apply to the new reference energies.
    validation = {name: error for name, error in card.validation.items() if not name.startswith(f"{ENERGY} ")}
    fitted_to = ", ".join(f"{redact_urls(str(store.path))} ({store.store_hash})" for store in graphs)
    known = {name: text for name, text in card.origin.items() if name != "energy_basis"}  # no longer a teacher's
    origin = {**known, "reference_energies": f"fitted to {fitted_to}"}
    card = replace(card, energy_scheme=scheme, validation=validation, test={}, origin=origin)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, network, card)
    present = set(np.flatnonzero(errors.counts.sum(axis=0)).tolist())
    symbols = [chemical_symbols[number] for number in network.elements]
    return RefitReport(
        target,
        tuple(symbol for place, symbol in enumerate(symbols) if place in present),
        tuple(symbol for place, symbol in enumerate(symbols) if place not in present),
        len(errors.energy),
        n_skipped,
        errors.mae(np.zeros(len(corrections))),
        errors.mae(corrections),
        scheme,
    )


def _labelled(network: Network, stores: Sequence[GraphStore], name: str) -> tuple[list[NDArray[np.bool_]], int]:
    """Find the structures to which reference energies are fitted.

    Returns:
        bool[n_structures] for each store, and the number of structures with an energy that have other elements.
    """
    if not network.config.energy:
        raise ConfigError(
            f"{name} predicts no energy, so it has no reference energies to fit; use a network that predicts energies"
        )
    chosen, n_skipped = [], 0
    for store in stores:
        if store.cutoff < network.cutoff:
            raise ConfigError(
                f"{store.path}: the cutoff of {store.cutoff} angstrom is smaller than the network's; run `equiscreen "
                f"featurize ... --cutoff {network.cutoff}`"
            )
        known = np.zeros(len(store), dtype=bool)
        if ENERGY in store.label_names[0]:
            known |= np.isfinite(store.column(ENERGY))
        known &= ~isolated_atoms([store], [known], network.cutoff)[0]
        chosen.append(known & of_elements(store, network.elements))
        n_skipped += int(known.sum() - chosen[-1].sum())
    if not any(rows.any() for rows in chosen):
        raise ConfigError(
            f"{', '.join(str(store.path) for store in stores)}: no structure has an energy and only elements that "
            f"{name} supports; choose another store, or map the energies with `featurize --label energy=KEY[unit]`"
        )
    return chosen, n_skipped


def fit_references(
    network: Network,
    stores: Sequence[GraphStore],
    chosen: Sequence[NDArray[np.bool_]],
    elements: set[int],
    atoms: Mapping[int, float],
) -> tuple[tuple[float, ...], bool]:
    """Fit the reference energies of some elements to new labels, with the rest of the network fixed.

    Corrections to the current reference energies are the least-squares fit of the residual energies to composition, on
    a sample of labelled structures that covers rare elements. Energies of isolated atoms replace the fitted energies if
    this raises the mean error by at most `ATOMS_MAY_COST`. The error rises more if the network's energies are not
    relative to isolated atoms, for example because its reference energies are averages over crystals.

    Args:
        network: Network with its weights.
        stores: Stores of the new labels.
        chosen: bool[n_structures] for each store, structures to train on.
        elements: Elements whose reference energies are fitted.
        atoms: Energies of isolated atoms (eV), by atomic number.

    Returns:
        Reference energy of each element of the network (eV), and whether they include the energies of isolated atoms.
    """
    errors = energy_errors(network, stores, chosen, elements)
    current = np.array(network.statistics.reference_energies)
    places = {element: place for place, element in enumerate(network.elements) if element in elements}
    known = {place: atoms[element] - current[place] for element, place in places.items() if element in atoms}
    free = errors.fit(list(places.values()), {})
    if known:
        bound = errors.fit(list(places.values()), known)
        if not len(errors.energy) or errors.mae(bound) <= errors.mae(free) + ATOMS_MAY_COST:
            return tuple((current + bound).tolist()), True
    return tuple((current + free).tolist()), False


@dataclass(frozen=True, slots=True)
class EnergyErrors:
    """Errors of total energies, with the compositions that reference energies are fitted to.

    Attributes:
        counts: float64[n, n_elements], number of atoms of each element of the network.
        energy: float64[n], label minus prediction (eV).
    """

    counts: NDArray[np.float64]
    energy: NDArray[np.float64]

    def fit(self, columns: Sequence[int], known: Mapping[int, float]) -> NDArray[np.float64]:
        """Fit corrections of the reference energies (eV): float64[n_elements].

        Args:
            columns: Columns of the elements to correct; the others are not corrected.
            known: Given corrections (eV) by column, which are not fitted.
        """
        out = np.zeros(self.counts.shape[1])
        out[list(known)] = list(known.values())
        free = [column for column in columns if column not in known]
        if free and len(self.energy):
            out[free] = np.linalg.lstsq(self.counts[:, free], self.energy - self.counts @ out, rcond=None)[0]
        return out

    def mae(self, corrections: NDArray[np.float64]) -> float:
        """Return the mean absolute error with corrected reference energies (eV/atom)."""
        return float(np.abs((self.energy - self.counts @ corrections) / self.counts.sum(axis=1)).mean())


def energy_errors(
    network: Network, stores: Sequence[GraphStore], chosen: Sequence[NDArray[np.bool_]], elements: set[int]
) -> EnergyErrors:
    """Compute the errors of the energies in a sample of the chosen structures; the sample covers rare elements."""
    potential = TorchPotential(network)
    counts, errors = [np.zeros((0, len(network.elements)))], [np.zeros(0)]
    for rows in EpochReader(stores, _sample_structures(stores, chosen, elements), labels=(ENERGY,)).blocks(64):
        labels = rows.block.structure_labels.get(ENERGY)
        known = np.flatnonzero(np.isfinite(labels)) if labels is not None else np.zeros(0, dtype=np.int64)
        if len(known):
            block = rows.block.take(known)
            of_element = element_counts(block.atom_structure, block.atomic_number, len(block))
            counts.append(of_element[:, list(network.elements)].astype(np.float64))
            errors.append(block.structure_labels[ENERGY] - potential.evaluate(block).energy)
    return EnergyErrors(np.concatenate(counts), np.concatenate(errors))


def _sample_structures(
    stores: Sequence[GraphStore], chosen: Sequence[NDArray[np.bool_]], elements: set[int]
) -> list[NDArray[np.bool_]]:
    """Sample chosen structures, spread over the stores (see `REFERENCE_STRUCTURES`), and more of each rare element."""
    rows = np.flatnonzero(np.concatenate(list(chosen)))
    taken = np.zeros(sum(map(len, chosen)), dtype=bool)
    taken[rows[:: max(1, len(rows) // REFERENCE_STRUCTURES)]] = True
    holds = np.concatenate([counts[:, sorted(elements)] > 0 for store in stores for counts in compositions(store)])
    for has in holds[rows].T:
        taken[rows[has][:LEAST_STRUCTURES]] = True
    return np.split(taken, np.cumsum([len(some) for some in chosen])[:-1])
