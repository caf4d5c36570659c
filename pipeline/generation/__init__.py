"""Candidate crystals made by ion substitution in prototypes.

Another source of prototypes goes into `prototypes`; another method gets a module beside `substitution`.
"""
