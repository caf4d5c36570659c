"""Crystal structures: validation, symmetry, elements, and structure matching."""
