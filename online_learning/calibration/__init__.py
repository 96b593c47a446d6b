"""Whether predictions deserve trust."""
