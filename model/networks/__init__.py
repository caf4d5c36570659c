"""The networks: energies, forces, stresses and heads of structures."""
