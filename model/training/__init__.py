"""Training of a network or an ensemble, fine-tuning, and repetition of a run.

Another loss goes into `losses`, another learning rate schedule into `schedule`; `train` is the entry point.
"""
