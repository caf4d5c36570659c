"""The command line `equiscreen`: one module per group of verbs, one public function of the library behind each verb.

A module of verbs imports nothing heavy: what a verb needs is imported when it runs, so that `--help` is immediate.
"""
