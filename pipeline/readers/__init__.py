"""Readers: bytes to structures, one module per format.

To add a file format, add it to `pipeline.sources.formats`, write a module here that returns a structure, and register
it in the table in `records` (for a text format, also in the table in `splitting`).
"""
