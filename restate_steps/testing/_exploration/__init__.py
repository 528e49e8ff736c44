"""Exploration: schedules, runs under them, and the search for those that go wrong."""
