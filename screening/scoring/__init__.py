"""Scoring: evaluate a model on every structure of a graph store, on Dask workers.

What is computed for each structure, and when it is not, is decided in `score`.
"""
