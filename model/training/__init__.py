"""Training of a network or an ensemble, fine-tuning, and repetition of a run.

To add a loss, extend `losses`; to add a learning rate schedule, extend `schedule`. `train` is the entry point.
"""
