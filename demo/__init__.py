"""The demo: published weights rank intermetallics, then a new network learns alloys with known energies.

`published` and `trained` are its two acts; `job` runs them.
"""
