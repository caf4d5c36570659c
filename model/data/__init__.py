"""Batches, targets, splits and statistics of training data.

Another way to hold out structures goes into `splits`.
"""
