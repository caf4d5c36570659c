"""Properties of relaxed crystals, such as elastic tensors and equations of state, for many materials at once.

To add a property, write a class like `mechanics.equation_of_state.EquationOfState` that implements `protocol.Property`,
and add it to the presets in `presets`.
"""
