"""Errors, calibration and plots."""
