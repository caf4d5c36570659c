"""Featurization: structure files become a graph store."""
