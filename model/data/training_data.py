"""Graph stores, split and batches of one training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...pipeline.store.graph_store import GraphStore
from ..config.training import TrainingConfig
from ..networks.base import Network
from .batches import Batch, StructureBatches
from .splits import Split
from .targets import HeadLabels


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Data of one training run.

    Attributes:
        stores: Graph stores of the structures.
        split: Training, validation and test structures.
        heads: Labels of the heads, by name.
    """

    stores: tuple[GraphStore, ...]
    split: Split
    heads: Mapping[str, HeadLabels]

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
        """Batches of the training, validation or test structures.

        Args:
            subset: ``training``, ``validation`` or ``test``.
            network: Network that the batches are for.
            config: Settings of the training.
            shuffle: As in `StructureBatches`.
            share: As in `StructureBatches`.
            skip: As in `StructureBatches`.
        """
        return StructureBatches(
            self.stores,
            getattr(self.split, subset),
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
        """Describe structures of a batch by id, row and store; after the first three, only by their number."""
        found = []
        for row in rows[:3]:
            store, place = self.stores[int(batch.store[row])], int(batch.row[row])
            name = str(store.column("structure_id", place, place + 1)[0])
            found.append(f"{name or 'unnamed'} (row {place} of {store.path})")
        return ", ".join(found) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
