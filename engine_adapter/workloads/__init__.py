"""Requests to serve: formats, synthetic ones, lengths, arrivals."""
