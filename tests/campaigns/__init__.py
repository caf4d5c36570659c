"""Tests of equiscreen.campaigns."""
