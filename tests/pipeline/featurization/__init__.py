"""Tests of featurization."""
