"""The facts: frozen records that cross borders, the schema, one writer, readers and named queries."""
