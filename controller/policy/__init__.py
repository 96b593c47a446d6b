"""Scheduling policies, ours and the baselines: pure functions from a request and its predicted distribution to a table."""
