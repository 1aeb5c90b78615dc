"""Weights on disk: where they are published, fetched, found."""
