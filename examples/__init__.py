"""Example services. ``restate-steps dev examples.app:app`` serves the greeting agent and the checkout."""
