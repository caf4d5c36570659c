"""Training: one network, an ensemble, fine-tuning, repetition."""
