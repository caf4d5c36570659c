"""Batches, targets, splits and statistics of training data.

To hold out structures in another way, extend `splits`.
"""
