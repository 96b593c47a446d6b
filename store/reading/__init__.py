"""Queries of the history: a request's timeline, latencies, load, the sandbox for SQL, example queries."""
