"""Labels of structures: quantities with units, and where they stand in a record."""
