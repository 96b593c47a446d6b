"""Prequential evaluation: test, then train."""
