"""Resumable runs on Dask: cluster, failure policy, parts, staging folder and lock.

`failure_policy` handles structures that kill their worker, and `staging` keeps what an interrupted run resumes from;
`pipeline.store.writer` combines them into the run that writes a store.
"""
