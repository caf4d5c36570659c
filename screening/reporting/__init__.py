"""Report of a screen as one HTML page.

To add a figure, write a function in `figures`; `content` collects its numbers, and `report` places it on the page.
"""
