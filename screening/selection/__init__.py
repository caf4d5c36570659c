"""Selecting the best structures of a scores dataset and writing them to files."""
