"""Choosing the best structures and writing them."""
