"""From candidates to a ranked list: scores, relaxations, convex hulls, selections and reports."""

from .comparison import compare, join_energies
from .convex_hull.hull import hull
from .dataset.parquet import to_parquet
from .dataset.scores import open_scores
from .label_comparison import calibration, labels_and_predictions
from .multi_fidelity import CascadeSettings, cascade
from .relaxation.batched import RelaxSettings, relax_structures
from .relaxation.relax import relax
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
    "hull",
    "join_energies",
    "labels_and_predictions",
    "open_scores",
    "relax",
    "relax_structures",
    "report",
    "screen",
    "screen_files",
    "select",
    "to_parquet",
]
