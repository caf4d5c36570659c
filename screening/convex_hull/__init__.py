"""Energy above the convex hull of competing phases.

To read competing phases from another file format, extend `references`; for other energy corrections, write a module
like `mp2020`.
"""
