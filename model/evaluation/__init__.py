"""Errors of a trained network, calibration of its uncertainty, and plots of both.

Another measure of the errors goes into `metrics`.
"""
