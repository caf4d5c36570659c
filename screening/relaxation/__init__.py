"""Relaxation of structures to their energy minima, many at once.

To add an optimizer, write a class like `optimizers.Fire` that implements `optimizers.Descent`, add its name to
`optimizers.Optimizer` and to the option of `cli.screening.relax`, and create it in `batched`, where a descent begins.
"""
