"""Relaxation of structures to their energy minima, many at once."""
