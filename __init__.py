"""Screen crystal structures with E(3)-equivariant neural networks.

The names that matter most, each imported on first use:

* ``rank``: the whole job, from structure files to a ranked list with a report.
* ``featurize``: structure files to a graph store.
* ``train``: a network, trained on graph stores.
* ``export_onnx``: the network as one ONNX file, which needs no PyTorch.
* ``screen``: energies, forces and stresses of all structures of a graph store.
* ``relax``: energies, forces and stresses of the relaxed structures.
* ``hull``: formation energies and energies above the convex hull.
* ``select``: the best structures, as files and as a table.
* ``open_scores``: the result of any of these as an xarray dataset.
* ``OnnxCalculator``: a model file as an ASE calculator.

Example:
    >>> import equiscreen
    >>> equiscreen.featurize("crystals.extxyz", "crystals.zarr", scheduler="threads").stored
    4
    >>> scores = equiscreen.screen("crystals.zarr", "model.onnx", "crystals.scores.zarr", scheduler="threads")
    >>> scores["formula"].values.tolist()
    ['Al', 'Cu', 'AlCu', 'AlCu3']

More in ``equiscreen.pipeline`` (structures to neighbour graphs), ``equiscreen.model`` (networks and their training),
``equiscreen.export`` (the ONNX file and what evaluates it), ``equiscreen.screening`` (candidates to a ranked list),
``equiscreen.publishing`` (results for others) and ``equiscreen.campaigns`` (whole jobs, and models by name). The
command line offers the same steps; see ``equiscreen --help``.
"""

# Imports point one way: pipeline <- model <- export <- screening <- publishing <- campaigns <- demo <- cli <- __main__.
# The code below this line imports none of these packages before one of their names is used.

from typing import TYPE_CHECKING

from .pipeline.lazy_names import lazy_names

if TYPE_CHECKING:
    from .campaigns.ranking import rank
    from .export.exporter import export_onnx
    from .export.runtime.ase_calculator import OnnxCalculator
    from .model.training.train import train
    from .pipeline.featurization.featurize import featurize
    from .screening.convex_hull.hull import hull
    from .screening.dataset.scores import open_scores
    from .screening.relaxation.relax import relax
    from .screening.scoring.screen import screen
    from .screening.selection.select import select

__version__ = "0.2.0"
__all__ = [
    "OnnxCalculator",
    "export_onnx",
    "featurize",
    "hull",
    "open_scores",
    "rank",
    "relax",
    "screen",
    "select",
    "train",
]

if not TYPE_CHECKING:  # otherwise a type checker would accept any name
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "OnnxCalculator": ".export.runtime.ase_calculator",
            "export_onnx": ".export.exporter",
            "featurize": ".pipeline.featurization.featurize",
            "hull": ".screening.convex_hull.hull",
            "open_scores": ".screening.dataset.scores",
            "rank": ".campaigns.ranking",
            "relax": ".screening.relaxation.relax",
            "screen": ".screening.scoring.screen",
            "select": ".screening.selection.select",
            "train": ".model.training.train",
        },
        export_onnx=("e3nn", "onnx", "onnxruntime", "scipy", "torch"),
        train=("e3nn", "lightning", "torch"),
    )
