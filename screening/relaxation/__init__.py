"""Batched relaxation of structures."""
