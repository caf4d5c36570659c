"""Building blocks of the networks, such as radial functions, interactions and heads.

A new layer must be translatable to ONNX without scatters; `scatter_free` shows how.
"""
