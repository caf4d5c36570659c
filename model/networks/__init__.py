"""Networks that predict energies, forces, stresses and heads of structures."""
