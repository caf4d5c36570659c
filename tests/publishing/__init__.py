"""Tests of published and served results."""
