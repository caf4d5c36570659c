"""Tests of whole campaigns."""
