"""Tests of the handler loop."""
