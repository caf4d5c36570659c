"""The code blocks of the documentation: how they are found, what they are given, and how they run."""
