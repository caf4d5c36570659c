"""The demo: published weights rank real prototypes; a network of its own learns alloys of known energies."""
