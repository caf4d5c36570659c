"""Relaxation of structures to their energy minima, many at once.

Another optimizer is a class like `optimizers.Fire` that implements `optimizers.Descent`.
"""
