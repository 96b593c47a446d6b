"""The engine's side of the exchange with the controller."""
