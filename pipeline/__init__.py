"""Ground floor: structures to neighbour graphs in a Zarr store, and how the work is spread over Dask."""

from .block import GraphBlock
from .errors import EquiscreenError
from .featurization import FeaturizeReport, featurize
from .labels import LabelMapping, LabelRule, Quantity
from .merging import merge
from .neighbors import NeighborList, neighbor_list
from .readers import ReadOptions
from .reading import EpochReader
from .store import GraphStore
from .structure import Structure
from .substitution import Candidate, substitute
from .tables import NeighborTable, neighbor_table

__all__ = [
    "Candidate",
    "EpochReader",
    "EquiscreenError",
    "FeaturizeReport",
    "GraphBlock",
    "GraphStore",
    "LabelMapping",
    "LabelRule",
    "NeighborList",
    "NeighborTable",
    "Quantity",
    "ReadOptions",
    "Structure",
    "featurize",
    "merge",
    "neighbor_list",
    "neighbor_table",
    "substitute",
]
