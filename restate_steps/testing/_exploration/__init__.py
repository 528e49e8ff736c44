"""Exploration: schedules, runs under a schedule, and the search for runs that fail."""
