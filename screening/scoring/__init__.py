"""Scoring: evaluate a model on every structure of a graph store, on Dask workers."""
