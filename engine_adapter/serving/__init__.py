"""Processes in real time: simulated and real servers, their clients and child processes."""
