"""Properties of formulas and structures: composition, elements, charge balance, prototype."""
