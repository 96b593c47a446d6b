"""Order, admission and preemption inside the engine, by table look-ups only."""
