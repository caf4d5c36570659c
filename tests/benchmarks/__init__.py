"""Benchmarks. A file beside most of the scripts holds the text that the script last printed."""
