"""Live state for readers, metrics, tracing, health."""
