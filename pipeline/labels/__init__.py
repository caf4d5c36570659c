"""Labels of structures: quantities with units, and how to extract them from a record."""
