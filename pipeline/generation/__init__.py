"""Candidate crystals made by ion substitution in prototypes.

To add a source of prototypes, extend `prototypes`; for another method, write a module like `substitution`.
"""
