"""A screen as one HTML page."""
