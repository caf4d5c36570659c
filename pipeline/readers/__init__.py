"""Bytes to structures, one module per format."""
