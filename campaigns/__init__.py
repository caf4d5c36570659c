"""Whole campaigns: from candidates to a ranked list in one step."""
