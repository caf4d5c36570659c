"""Properties of formulas and structures: composition, elements, charge balance, prototype.

To make a new property available to selections, compute it here and add a column to
`screening.selection.derived_columns`.
"""
