"""Candidate crystals made by ion substitution in prototypes.

To add a source of prototypes, extend `prototypes`; to add another method of generation, write a module like
`substitution`.
"""
