"""Explains one request in sentences: why it ran when it did."""
