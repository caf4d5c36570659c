"""Tests of relaxation."""
