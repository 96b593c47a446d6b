"""Measurements of our own: schedules, predictions, and the system's price."""
