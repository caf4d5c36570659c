"""Published weights, converted to networks of this package."""
