"""Order, admission and victims inside the engine; look-ups only."""
