"""Which engine gets a request, for routers in front of several."""
