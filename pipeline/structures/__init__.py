"""Crystal structures: validation, symmetry, elements, and when two are the same crystal."""
