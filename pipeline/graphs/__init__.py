"""Periodic neighbour graphs and padded neighbour tables."""
