"""Tries vLLM's behaviours on a scheduler of its own before the plugin steers the engine's."""
