"""Irreps, Cartesian tensors and rotations.

Another kind of tensor that a head can predict is an entry of `tensors.TENSORS`.
"""
