"""Reference phases from files, the Materials Project and OPTIMADE servers, in one table for `equiscreen hull`.

To add a server that serves energies, extend `providers`.
"""
