"""Building blocks of the networks, such as radial functions, interactions and heads.

A new layer has to lower to ONNX without scatters; `scatter_free` shows how.
"""
