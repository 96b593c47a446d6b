"""What pages show: the controller's API and the history, behind caches."""
