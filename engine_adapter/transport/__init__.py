"""Frames, sockets, keys and who may connect."""
