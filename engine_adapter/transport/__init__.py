"""Frames, sockets, keys and authorization."""
