"""From beliefs to decisions: cost, Gittins index, index tables, and the loop that owns state and effects."""
