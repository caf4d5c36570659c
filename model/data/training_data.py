"""Graph stores, split and batches of one training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.store.graph_store import GraphStore
from ..config.training import TrainingConfig
from ..networks.base import Network
from .batches import Batch, StructureBatches
from .replay import REPLAY, Replay
from .splits import Split
from .targets import HeadLabels


def open_stores(stores: str | Path | Sequence[str | Path]) -> list[GraphStore]:
    """Open graph stores, in the order given.

    Raises:
        ConfigError: No store is given.
        StoreError: A store cannot be read.
    """
    paths = [stores] if isinstance(stores, str | Path) else list(stores)
    if not paths:
        raise ConfigError("there are no graph stores; give at least one")
    return [GraphStore(path) for path in paths]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Data of one training run.

    Attributes:
        stores: Graph stores of the structures.
        split: Training, validation and test structures.
        heads: Labels of the heads, by name.
        replay: Structures of an older domain, which are trained on together with the others; None without replay.
    """

    stores: tuple[GraphStore, ...]
    split: Split
    heads: Mapping[str, HeadLabels]
    replay: Replay | None = None

    @property
    def all_stores(self) -> tuple[GraphStore, ...]:
        """The stores that batches come from: `stores` and, if structures are replayed, their store."""
        return self.stores if self.replay is None else (*self.stores, self.replay.store)

    def chosen(self, subset: str) -> list[NDArray[np.bool_]]:
        """Return the masks of a subset, bool[n_structures] for each of `all_stores`; see `batches`."""
        if subset == REPLAY:
            masks = [np.zeros(len(store), dtype=bool) for store in self.stores]
        else:
            masks = list(getattr(self.split, subset))
        return masks if self.replay is None else [*masks, self.replay.chosen(subset)]

    def batches(
        self,
        subset: str,
        network: Network,
        config: TrainingConfig,
        *,
        shuffle: tuple[int, int] | None = None,
        share: tuple[int, int] = (0, 1),
        skip: int = 0,
    ) -> StructureBatches:
        """Return batches of the training, validation or test structures, or of replayed structures that are held out.

        Args:
            subset: ``training`` (with the replayed structures), ``validation``, ``test`` or ``replay``.
            network: Network that the batches are for.
            config: Settings of the training.
            shuffle: As in `StructureBatches`.
            share: As in `StructureBatches`.
            skip: As in `StructureBatches`.
        """
        return StructureBatches(
            self.all_stores,
            self.chosen(subset),
            self.heads,
            config.batch_size,
            network.cutoff,
            network.dtype,
            energy=network.config.energy,
            shuffle=shuffle,
            share=share,
            skip=skip,
        )

    def names(self, batch: Batch, rows: Sequence[int]) -> str:
        """Describe structures of a batch by id, row and store; after the first three, only count the rest."""
        found = []
        for row in rows[:3]:
            store, place = self.all_stores[int(batch.store[row])], int(batch.row[row])
            name = str(store.column("structure_id", place, place + 1)[0])
            found.append(f"{name or 'unnamed'} (row {place} of {store.path})")
        return ", ".join(found) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
