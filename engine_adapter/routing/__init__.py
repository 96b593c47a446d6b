"""Choice of the engine for a request, for routers in front of several engines."""
