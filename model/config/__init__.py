"""Configuration of networks and of their training, as pydantic models.

A new setting is a field here, and a line in docs/training.md.
"""
