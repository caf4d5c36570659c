"""Configuration of networks and trainings."""
