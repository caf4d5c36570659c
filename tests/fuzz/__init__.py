"""A seeded fuzzer over everything that is read: structure files, stores, scores, models, references, settings."""
