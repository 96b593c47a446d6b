"""Replays of recorded runs under other policies, and the gain over first come, first served."""
