"""The controller: predicts, orders and records the requests of its engines."""
