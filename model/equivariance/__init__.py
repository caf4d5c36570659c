"""Irreps, Cartesian tensors and rotations.

To let heads predict another kind of tensor, add an entry to `tensors.TENSORS`.
"""
