"""Readers: bytes to structures, one module per format.

To add a file format, add it to `pipeline.sources.formats`, write a module here that returns a structure, and enter it
in the table of `records` (and, for text, in that of `splitting`).
"""
