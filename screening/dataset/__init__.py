"""The scores dataset: its arrays, readers, subsets and parquet files."""
