"""Resumable runs on Dask: cluster, tasks, parts, staging folder and lock.

`tasks` decides what happens to a structure that kills its worker, `staging` what an interrupted run resumes from.
"""
