"""Candidate crystals by ion substitution into prototypes."""
