"""Report of a screen as one HTML page."""
