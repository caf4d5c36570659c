"""Selecting the best structures of a scores dataset and writing them to files.

To add a derived column, extend `derived_columns`; to add an output format, extend `outputs` and write a class like
`structure_files.CifFolder`.
"""
