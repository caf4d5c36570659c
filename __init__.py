"""Screen crystal structures with E(3)-equivariant neural networks.

The names that matter most, each imported on first use:

* ``rank``: do the whole job, from structure files to a ranked list with a report.
* ``featurize``: convert structure files to a graph store.
* ``train``: train a network on graph stores.
* ``export_onnx``: write a trained network to one ONNX file, which runs without PyTorch.
* ``screen``: compute energies, forces and stresses of all structures of a graph store.
* ``relax``: relax all structures of a graph store, and compute the same for the relaxed structures.
* ``hull``: compute formation energies and energies above the convex hull.
* ``select``: write the best structures to files and to a table.
* ``open_scores``: open the scores that `screen`, `relax` or `hull` wrote as an xarray dataset.
* ``OnnxCalculator``: use a model file as an ASE calculator.

Example:
    >>> import equiscreen
    >>> equiscreen.featurize("crystals.extxyz", "crystals.zarr", scheduler="threads").stored
    4
    >>> scores = equiscreen.screen("crystals.zarr", "model.onnx", "crystals.scores.zarr", scheduler="threads")
    >>> scores["formula"].values.tolist()
    ['Al', 'Cu', 'AlCu', 'AlCu3']

See also ``equiscreen.pipeline`` (from structures to neighbour graphs), ``equiscreen.model`` (networks and their
training), ``equiscreen.export`` (the ONNX file and its evaluation), ``equiscreen.screening`` (from candidates to a
ranked list), ``equiscreen.publishing`` (sharing of results) and ``equiscreen.campaigns`` (whole jobs, and models by
name). The command line offers the same steps; see ``equiscreen --help``.
"""

# Imports go one way: pipeline <- model <- export <- screening <- publishing <- campaigns <- demo <- cli <- __main__.
# Apart from `pipeline.lazy_names`, the code below imports a module only when one of its names is first used.

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
