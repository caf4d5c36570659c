"""Resumable runs on Dask: cluster, tasks, parts, staging folder and lock."""
