"""Selecting the best structures of a scores dataset and writing them to files.

Another derived column goes into `derived_columns`; another output format into `outputs`, with a writer like
`structure_files.CifFolder`.
"""
