"""Results of other codes, which the networks imported from them must reproduce.

Each script (``python -m tests.oracles.NAME``) builds small networks with random weights over a grid of settings, in the
code that they come from and in float64, and writes weights, settings and results for `structures` into its folder.
`make oracles` runs all scripts.
"""
