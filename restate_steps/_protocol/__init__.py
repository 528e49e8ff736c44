"""Restate's service protocol: the messages between a server and an application."""
