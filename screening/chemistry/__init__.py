"""What a formula and a structure say about themselves."""
