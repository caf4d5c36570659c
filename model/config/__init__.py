"""Configuration of networks and of their training."""
