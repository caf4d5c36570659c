"""Phonons and lattice thermal conductivity of one crystal, from the forces of its displaced supercells."""
