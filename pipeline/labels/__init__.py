"""Labels of structures: quantities with units, and how to extract them from a record.

To read another data set, add a YAML file to `mappings`.
"""
