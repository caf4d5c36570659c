"""From candidates to a ranked list: scores, relaxations, convex hulls, selections and reports.

The steps pass on scores datasets (see `dataset`); `multi_fidelity` chains several steps.
"""

from typing import TYPE_CHECKING

from ..pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .comparison import compare, join_energies
    from .convex_hull.hull import hull
    from .dataset.dataframe import to_dataframe
    from .dataset.parquet import to_parquet
    from .dataset.scores import open_scores
    from .label_comparison import calibration, labels_and_predictions
    from .multi_fidelity import CascadeSettings, cascade
    from .properties.compute import compute_properties
    from .relaxation.batched import RelaxSettings, relax_structures
    from .relaxation.relax import relax
    from .relaxation.relax_files import relax_files
    from .reporting.report import report
    from .scoring.screen import screen
    from .scoring.screen_files import screen_files
    from .selection.select import select

__all__ = [
    "CascadeSettings",
    "RelaxSettings",
    "calibration",
    "cascade",
    "compare",
    "compute_properties",
    "hull",
    "join_energies",
    "labels_and_predictions",
    "open_scores",
    "relax",
    "relax_files",
    "relax_structures",
    "report",
    "screen",
    "screen_files",
    "select",
    "to_dataframe",
    "to_parquet",
]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "CascadeSettings": ".multi_fidelity",
            "RelaxSettings": ".relaxation.batched",
            "calibration": ".label_comparison",
            "cascade": ".multi_fidelity",
            "compare": ".comparison",
            "compute_properties": ".properties.compute",
            "hull": ".convex_hull.hull",
            "join_energies": ".comparison",
            "labels_and_predictions": ".label_comparison",
            "open_scores": ".dataset.scores",
            "relax": ".relaxation.relax",
            "relax_files": ".relaxation.relax_files",
            "relax_structures": ".relaxation.batched",
            "report": ".reporting.report",
            "screen": ".scoring.screen",
            "screen_files": ".scoring.screen_files",
            "select": ".selection.select",
            "to_dataframe": ".dataset.dataframe",
            "to_parquet": ".dataset.parquet",
        },
    )
