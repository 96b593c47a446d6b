"""Sentences, numbers and notices as pages show them."""
