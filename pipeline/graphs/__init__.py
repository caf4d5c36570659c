"""Periodic neighbour lists, graphs and padded neighbour tables."""
