"""Quality, speed and stability of length predictions."""
