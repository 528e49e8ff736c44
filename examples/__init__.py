"""Services that show how it is used: ``restate-steps dev examples.app:app`` serves all of them."""
