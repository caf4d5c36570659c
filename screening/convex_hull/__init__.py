"""Energy above the convex hull of competing phases."""
