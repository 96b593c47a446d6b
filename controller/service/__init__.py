"""The process: what is opened and closed, the control loop, the warm start from history."""
