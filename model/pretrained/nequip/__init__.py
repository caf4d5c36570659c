"""Checkpoints and packages of NequIP and of Allegro, which extends it."""
