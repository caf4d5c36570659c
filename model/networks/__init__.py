"""Networks that predict the energies, forces, stresses and other properties (heads) of structures.

A new architecture is a subclass of `base.Network`, built by `model.checkpoint.make_network`; tests/conformance checks
its physics.
"""
