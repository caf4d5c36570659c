"""Mechanical properties: elastic tensors and equations of state."""
