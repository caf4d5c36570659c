"""Scoring: evaluate a model on every structure of a graph store, on Dask workers.

`score` decides what is computed for each structure and which structures are skipped.
"""
