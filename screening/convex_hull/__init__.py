"""Energy above the convex hull of competing phases.

Another file format of competing phases goes into `references`; other energy corrections get a module beside `mp2020`.
"""
