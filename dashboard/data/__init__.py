"""Data of the pages: the controller's API and the history, behind caches."""
