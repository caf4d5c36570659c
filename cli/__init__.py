"""The command line `equiscreen`: one module per group of commands, each of which calls one public function.

These modules import nothing heavy: what a command needs is imported when it runs, so that `--help` is immediate.
"""
