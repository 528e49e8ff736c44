"""Kills everything that takes part in many runs, again and again, and counts what went wrong: ``make chaos``."""
