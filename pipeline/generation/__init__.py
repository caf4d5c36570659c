"""Candidate crystals made by ion substitution in prototypes."""
