"""Screen crystal structures with E(3)-equivariant neural networks.

Imports point one way: ``pipeline <- model <- export <- screening <- campaigns <- demo <- cli <- __main__``.

* ``equiscreen.pipeline``: structures to neighbour graphs in a Zarr store, with the work spread over Dask.
* ``equiscreen.model``: an equivariant network, trained on such a store.
* ``equiscreen.export``: the network as one ONNX file; ``equiscreen.export.runtime`` evaluates the file.
* ``equiscreen.screening``: candidates to a ranked list; of the packages above it imports only ``pipeline`` and
  ``export.runtime``, so it needs no PyTorch.
* ``equiscreen.campaigns``: models by name, from the weights to an ONNX file that is made once.
* ``equiscreen.demo``: the whole workflow on an example.
* ``equiscreen.cli``: the command line, ``equiscreen``.
"""

__version__ = "0.1.0"
