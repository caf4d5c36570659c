"""Irreps, Cartesian tensors and rotations."""
