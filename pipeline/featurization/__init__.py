"""Structure files to a graph store."""
