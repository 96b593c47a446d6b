"""What the system costs an engine, and what a controller can bear."""
