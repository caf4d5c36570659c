"""Report of a screen as one HTML page.

Another figure is a function in `figures`; `content` collects its numbers, and `report` places it on the page.
"""
