"""Published weights as networks of this package."""
