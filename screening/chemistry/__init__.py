"""Properties of formulas and structures: composition, elements, charge balance, prototype.

To add one to selections, compute it here and make it a column in `screening.selection.derived_columns`.
"""
