"""The sharded Zarr store: schema, writing and reading."""
