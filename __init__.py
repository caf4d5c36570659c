"""Screen crystal structures with E(3)-equivariant neural networks.

Three packages, whose arrows of import point one way: ``export -> model -> pipeline``.

* ``equiscreen.pipeline``: structures to neighbour graphs in a Zarr store, spread over Dask.
* ``equiscreen.model``: an equivariant network, trained on such a store.
* ``equiscreen.export``: the network as one ONNX file, and the runtime that scores with it.
"""

__version__ = "0.1.0"
