"""The scores dataset: reading, subsets, parquet."""
