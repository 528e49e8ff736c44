"""Tests of ``restate_steps.server`` and of the command line."""
