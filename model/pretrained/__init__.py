"""Published weights, converted to networks of this package.

To add a foreign network, register its files in `registry` and write a module like `sevennet` that
converts its weights, and call it from `load`.
"""
