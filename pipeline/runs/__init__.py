"""Resumable work on Dask: cluster, tasks, parts, staging folder, lock."""
