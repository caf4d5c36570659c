"""Benchmarks; each prints the text that is committed beside it."""
