"""Questions to the history: a request's life, the sandbox for SQL, example queries."""
