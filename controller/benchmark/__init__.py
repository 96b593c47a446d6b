"""Benchmarks of scheduling, of predictions, and of the system's overhead."""
