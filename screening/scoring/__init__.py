"""Scores of every structure of a graph store, on Dask workers."""
