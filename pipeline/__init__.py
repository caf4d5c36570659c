"""Crystal structures to neighbour graphs in a Zarr store, computed in parallel with Dask.

`sources`, `readers` and `labels` turn files into labelled structures, `graphs` finds their neighbours, and `store`
holds the structures with their graphs. `runs` makes long jobs resumable; `featurization` puts the steps together.
"""

from typing import TYPE_CHECKING

from .lazy_names import lazy_names

if TYPE_CHECKING:
    from .errors import EquiscreenError
    from .featurization.featurize import featurize
    from .featurization.merge import merge
    from .featurization.report import FeaturizeReport
    from .generation.substitution import Candidate, substitute
    from .graphs.graph_block import GraphBlock
    from .graphs.neighbor_list import NeighborList, neighbor_list
    from .graphs.neighbor_table import NeighborTable, neighbor_table
    from .labels.mapping import LabelMapping, LabelRule
    from .labels.quantities import Quantity
    from .readers.records import ReadOptions
    from .store.epoch_reader import EpochReader
    from .store.graph_store import GraphStore
    from .structures.structure import Structure

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

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Candidate": ".generation.substitution",
            "EpochReader": ".store.epoch_reader",
            "EquiscreenError": ".errors",
            "FeaturizeReport": ".featurization.report",
            "GraphBlock": ".graphs.graph_block",
            "GraphStore": ".store.graph_store",
            "LabelMapping": ".labels.mapping",
            "LabelRule": ".labels.mapping",
            "NeighborList": ".graphs.neighbor_list",
            "NeighborTable": ".graphs.neighbor_table",
            "Quantity": ".labels.quantities",
            "ReadOptions": ".readers.records",
            "Structure": ".structures.structure",
            "featurize": ".featurization.featurize",
            "merge": ".featurization.merge",
            "neighbor_list": ".graphs.neighbor_list",
            "neighbor_table": ".graphs.neighbor_table",
            "substitute": ".generation.substitution",
        },
    )
