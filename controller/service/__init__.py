"""The controller's process: its resources, the control loop, and the warm start from history."""
