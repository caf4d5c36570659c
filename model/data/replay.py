"""Replay: training on structures of an older domain, labelled by the network itself, to keep it from forgetting."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.labels.mapping import LabelMapping
from ...pipeline.labels.quantities import ENERGY, FORCES, STRESS
from ...pipeline.redaction import redact_urls
from ...pipeline.runs.parts import PartKey, PartManifest, write_part
from ...pipeline.store.compaction import finish_store, write_shards
from ...pipeline.store.epoch_reader import EpochReader, PlacedBlock
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import ATOM, EDGE, GRAPH_SCHEMA, STATUS_ISOLATED_ATOMS, ArraySpec, graph_schema
from ...pipeline.store.writer import concatenation
from ...pipeline.structures.structure import HASH_BYTES, Structure
from ..config.training import FineTuneConfig
from ..networks.base import Network
from ..networks.torch_potential import TorchPotential
from .batches import of_elements

# Folder of the replayed structures in the run folder, and name of the subset that is held out.
REPLAY_STORE, REPLAY = "replay.zarr", "replay"
# Some structures are held out in addition to the replayed structures to train on: a tenth of the requested number,
# within these bounds, but no more than a fifth of all structures that can be replayed (and at least one).
LEAST_HELD_OUT, MOST_HELD_OUT = 20, 200
# Root attribute with the origin of the structures and the number of structures to train on.
_ORIGIN = "replay"
_ROWS_AT_ONCE = 256
_GRAPH_ARRAYS = ("n_atoms", "n_edges", "cell", "pbc", "atomic_number", "frac_coord", "n_neighbors", "neighbor", "image")


@dataclass(frozen=True, slots=True)
class Replay:
    """Replayed structures.

    Attributes:
        store: The structures to train on, followed by the structures that are held out. Their labels are the
            predictions of the network before its first step.
        n_training: Number of structures to train on.
    """

    store: GraphStore
    n_training: int

    @property
    def n_held_out(self) -> int:
        """Number of structures that are held out."""
        return len(self.store) - self.n_training

    def chosen(self, subset: str) -> NDArray[np.bool_]:
        """Return the mask of a subset, bool[n_structures].

        Args:
            subset: ``training``, or `REPLAY` for the structures that are held out; any other subset is empty.
        """
        place = np.arange(len(self.store))
        if subset == REPLAY:
            return place >= self.n_training
        return place < self.n_training if subset == "training" else np.zeros(len(place), dtype=bool)


def open_replay(config: FineTuneConfig, cutoff: float) -> GraphStore | None:
    """Open the store of structures to replay, or return None if there is none.

    Args:
        config: Settings of fine-tuning.
        cutoff: Cutoff radius of the network (angstrom).

    Raises:
        ConfigError: The store has a smaller cutoff than the network, or no checkpoint is fine-tuned.
        StoreError: The store cannot be read.
    """
    if config.replay is None:
        return None
    if config.checkpoint is None:
        raise ConfigError(
            "training.fine_tune.replay requires a checkpoint, whose predictions are replayed; give one with `--from`, "
            "or remove `replay`"
        )
    store = GraphStore(config.replay)
    if store.cutoff < cutoff:
        raise ConfigError(
            f"{store.path} cannot be replayed: its cutoff of {store.cutoff} angstrom is smaller than the network's; "
            f"run `equiscreen featurize ... --cutoff {cutoff}`"
        )
    return store


def replay(
    folder: Path,
    source: GraphStore,
    network: Network,
    elements: Collection[int],
    config: FineTuneConfig,
    *,
    count: int,
    seed: int,
    identity: str,
) -> Replay:
    """Sample structures and label them, unless the run folder already holds the sample of this run.

    Args:
        folder: Run folder.
        source: Store to sample.
        network: Network before its first step, with its reference energies refitted.
        elements: Elements that the checkpoint supports; structures with other elements are not sampled.
        config: Settings of fine-tuning.
        count: Number of new structures to train on.
        seed: Random seed of the sample and of the displacements of atoms.
        identity: Digest of everything that the sample and its labels depend on.

    Returns:
        The sample, which is also stored in the run folder.

    Raises:
        ConfigError: The store has fewer than two structures of these elements, or the network predicts no energy.
        StoreError: The store is damaged.
    """
    path = folder / REPLAY_STORE
    try:
        done = GraphStore(path)
    except StoreError:
        pass  # not written yet, or not completely
    else:
        if done.attrs[_ORIGIN]["identity"] == identity:
            return Replay(done, int(done.attrs[_ORIGIN]["n_training"]))
    if not network.config.energy:
        raise ConfigError(f"{source.path} cannot be replayed: the network predicts no energy; remove `replay`")
    parts = _sample(source, elements, round(config.replay_fraction * count), seed)
    attrs = {
        "identity": identity,
        "path": redact_urls(str(source.path)),
        "store_hash": source.store_hash,
        "n_training": len(parts[0]),
        "rattle": config.replay_rattle,
        "seed": seed,
    }
    blocks = (
        (rows, _rattled(rows, config.replay_rattle, seed, network.cutoff))
        for part in parts
        for rows in EpochReader([source], [np.isin(np.arange(len(source)), part)], labels=False).blocks(_ROWS_AT_ONCE)
    )
    _write(path, source, blocks, TorchPotential(network), attrs)
    return Replay(GraphStore(path), len(parts[0]))


def _sample(
    source: GraphStore, elements: Collection[int], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose rows to train on, int64[n], and rows to hold out, int64[m]."""
    known = np.flatnonzero(of_elements(source, elements))
    if len(known) < 2:
        raise ConfigError(
            f"{source.path} cannot be replayed: {len(known)} of its {len(source):,} structures have only elements "
            "that the checkpoint supports, but at least two are needed; choose another store"
        )
    held_out = min(max(LEAST_HELD_OUT, count // 10), MOST_HELD_OUT, max(1, len(known) // 5))
    n_training = max(1, min(count, len(known) - held_out))
    order = np.random.default_rng(seed).permutation(known)[: n_training + held_out]
    return order[:n_training], order[n_training:]


def _rattled(rows: PlacedBlock, rattle: float, seed: int, cutoff: float) -> GraphBlock:
    """Displace the atoms. In relaxed crystals forces vanish, so their labels say little about other positions."""
    structures = []
    for place, row in enumerate(rows.row.tolist()):
        structure = rows.block.structure(place)
        moves = np.random.default_rng((seed, row)).normal(0.0, rattle, (len(structure), 3)) if rattle else 0.0
        positions = structure.frac_coord @ structure.cell + moves
        structures.append(
            Structure.from_cartesian(structure.atomic_number, positions, structure.cell, pbc=structure.pbc)
        )
    return GraphBlock.from_structures(structures, cutoff)


def _write(
    path: Path,
    source: GraphStore,
    blocks: Iterator[tuple[PlacedBlock, GraphBlock]],
    potential: TorchPotential,
    origin: Mapping[str, Any],
) -> None:
    """Write a graph store of labelled structures, which appears under its name only when it is complete."""
    scratch = path.with_name(f"{path.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed
    parts, store = scratch / "parts", scratch / "store"
    parts.mkdir(parents=True)
    names = source.column("structure_id")
    manifests: list[PartManifest] = []
    for number, (rows, block) in enumerate(blocks):
        arrays = {
            **_rows(block, potential),
            "structure_id": names[rows.row].tolist(),
            "source": [str(origin["path"])] * len(block),
            "source_index": rows.row,
        }
        counts = {"read": len(block), ATOM: len(block.atomic_number), EDGE: len(block.neighbor)}
        manifests.append(write_part(parts, PartKey(number, 0, len(block)), arrays, counts, {}))
    digests = write_shards(concatenation(store, parts, _arrays(), manifests))
    attrs = {
        "schema": GRAPH_SCHEMA,
        "cutoff": potential.cutoff,
        "cutoff_units": "angstrom",
        "software": {"equiscreen": version("equiscreen")},
        _ORIGIN: dict(origin),
    }
    finish_store(store, digests, attrs)
    shutil.rmtree(path, ignore_errors=True)  # left by a run with other settings that had not begun to train
    store.rename(path)
    shutil.rmtree(scratch)


def _arrays() -> Sequence[ArraySpec]:
    return graph_schema(LabelMapping().with_ase_defaults().only({ENERGY, FORCES, STRESS}))


def _rows(block: GraphBlock, potential: TorchPotential) -> dict[str, Any]:
    """Return the rows of a graph store: the graphs and their labels."""
    found = potential.evaluate(block)
    isolated = np.minimum.reduceat(block.n_neighbors, block.atom_start) == 0
    hashes = b"".join(block.structure(place).content_hash() for place in range(len(block)))
    return {
        **{name: getattr(block, name) for name in _GRAPH_ARRAYS},
        "structure_hash": np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES),
        "status": np.where(isolated, STATUS_ISOLATED_ATOMS, 0).astype(np.uint8),
        ENERGY: found.energy,
        FORCES: found.forces,
        STRESS: found.stress,
    }
