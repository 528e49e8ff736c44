"""Tests of the concurrency functions, and scenarios that other tests use."""
