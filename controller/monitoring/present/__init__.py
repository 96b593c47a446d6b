"""The present: figures of the last quarter of an hour, what is amiss, and what waits."""
