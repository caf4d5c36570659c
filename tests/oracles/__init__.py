"""Results of other codes, which the networks imported from them must reproduce.

Each script (``python -m tests.oracles.NAME``) builds small networks with random weights and various settings in the
code NAME, evaluates them in float64, and writes their weights, settings and results to the folder of that name.
`make oracles` runs all scripts.
"""
