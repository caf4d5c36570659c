"""Featurization: the conversion of structure files to a graph store.

`partitions` divides the sources, and `task` turns one partition into graphs on a worker. Add new checks of structures
to `task`.
"""
