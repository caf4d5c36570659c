"""Training of a network or an ensemble, fine-tuning, and repetition of a run."""
