"""Live state, metrics, tracing and health of the controller."""
