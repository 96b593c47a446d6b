"""One distribution from all experts."""
