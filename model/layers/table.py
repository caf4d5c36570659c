"""The padded neighbour table as tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Table(NamedTuple):
    """Padded neighbour table (`NeighborTable`) as tensors, in the order of `INPUT_NAMES`."""

    atomic_number: Tensor
    vectors: Tensor
    neighbors: Tensor
    reverse: Tensor
    pair: Tensor
    pair_slot: Tensor
    structure: Tensor
    volume: Tensor
