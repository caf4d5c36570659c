"""Periodic neighbour lists (`neighbor_list`), graphs, and padded neighbour tables.

`potential` defines the interface of every model, in PyTorch or ONNX.
"""
