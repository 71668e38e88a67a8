"""Weights as files: where they are, fetched, recognised, described."""
