"""Batches, targets, splits and statistics of training data."""
