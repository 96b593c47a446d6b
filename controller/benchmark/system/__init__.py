"""The system's overhead in an engine, and the load that a controller can bear."""
