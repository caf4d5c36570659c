"""Pickled modules of PyTorch, read as inert records: no code in a file is run.

`reader` turns a pickle into records; the other modules find pickles and tensors in the archives that hold them.
"""
