"""From predicted distributions to decisions: cost, index, index tables, and the loop that owns state and effects."""
