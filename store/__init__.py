"""Records exchanged between processes, the history's schema, its one writer, readers and named queries."""
