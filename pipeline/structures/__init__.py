"""Crystal structures: validation, symmetry, elements, and structure matching.

Anything that can be computed from a bare structure, without a graph or a model, belongs here.
"""
