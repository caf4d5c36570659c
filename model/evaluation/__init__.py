"""Errors of a trained network, calibration of its uncertainty, and plots of both.

To add an error measure, extend `metrics`.
"""
