"""The command line `equiscreen`: one module per group of commands.

A command turns its options into a call of the library and prints a summary of the result. These modules import nothing
heavy: what a command needs is imported when it runs, so that `--help` is immediate.
"""
