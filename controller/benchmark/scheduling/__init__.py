"""Comparisons of policies and of routers in virtual time."""
