"""Networks that predict energies, forces, stresses and heads of structures.

A new architecture is a subclass of `base.Network`, built by `model.checkpoint.make_network`; tests/conformance checks
its physics.
"""
