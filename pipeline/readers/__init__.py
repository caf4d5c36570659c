"""Readers: bytes to structures, one module per format."""
