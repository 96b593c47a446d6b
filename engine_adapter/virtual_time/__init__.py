"""Engines in virtual time, their profiles, and the simulated engine."""
