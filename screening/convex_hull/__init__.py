"""Energy above the convex hull of competing phases.

To read competing phases from another file format, extend `reference_files`; for other energy corrections, write a
module like `mp2020`.
"""
