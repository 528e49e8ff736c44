"""Recorded journals: keeping them, and holding today's code against them."""
