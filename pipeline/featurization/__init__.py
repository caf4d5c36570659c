"""Featurization: structure files become a graph store.

`partitions` divides the sources, and `task` turns one partition into graphs on a worker; a new check of structures goes
there.
"""
