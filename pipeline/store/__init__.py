"""The sharded Zarr store: schema, writing and reading.

To add an array, declare it in `schema`; to write a new kind of store, use `writer.StoreWriter`.
"""
