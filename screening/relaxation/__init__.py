"""Relaxation of structures to their energy minima, many at once.

To add an optimizer, write a class like `optimizers.Fire` that implements `optimizers.Descent`, and name it in
`optimizers.Optimizer`, in `batched` where a descent begins, and in the option of `cli.screening.relax`.
"""
