"""The sharded Zarr store: schema, writing, reading."""
