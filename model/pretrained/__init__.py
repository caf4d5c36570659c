"""Published weights, converted to equiscreen networks.

To add a foreign network, write a module like `sevennet` that converts its weights, call it from `load`, and register
its files in `registry`.
"""
