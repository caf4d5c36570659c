"""Tests of equiscreen.campaigns.models."""
