"""The demo: published weights rank known crystals, then a new network learns alloys with known energies.

`published` and `trained` are its two acts; `job` runs them.
"""
