"""How well, how fast and how steadily lengths are predicted."""
