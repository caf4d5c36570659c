"""Relaxation of structures to their energy minima, many at once.

To add an optimizer, write a class like `optimizers.Fire` that implements `optimizers.Descent`, and add its name to
`optimizers.Optimizer`, in `batched` where a descent begins, and in the option of `cli.screening.relax`.
"""
