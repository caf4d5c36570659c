"""Selection of the best structures of a scores dataset, and the files that they are written to.

To add a derived column, extend `derived_columns`; to add an output format, extend `outputs` and write a class like
`structure_files.CifFolder`.
"""
