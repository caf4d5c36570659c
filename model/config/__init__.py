"""Configuration of networks and of their training, as pydantic models.

To add a setting, add a field to a model and a line to docs/training.md.
"""
