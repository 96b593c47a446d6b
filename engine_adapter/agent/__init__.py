"""The engine's half of the conversation with the controller."""
