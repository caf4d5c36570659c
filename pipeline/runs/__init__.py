"""Resumable runs on Dask: cluster, failure policy, parts, staging folder and lock.

`failure_policy` decides what happens to a structure that kills its worker, `staging` what an interrupted run resumes
from; `pipeline.store.writer` puts them together to the run that writes a store.
"""
