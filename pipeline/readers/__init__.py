"""Readers, which turn bytes into structures, with one module per format.

To add a text format, add it to `pipeline.sources.formats`, write a module here that returns a structure, and register
it in the tables in `records` (reading of a record) and `splitting` (division of a file into records).
"""
