"""One request in sentences: why it ran when it did."""
