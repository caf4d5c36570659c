"""The scores dataset: its arrays, readers, subsets and parquet files.

Arrays and statuses of a structure are defined in `scores`.
"""
