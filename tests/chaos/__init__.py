"""Chaos test: kill the processes behind many runs, again and again, and count the errors (``make chaos``)."""
