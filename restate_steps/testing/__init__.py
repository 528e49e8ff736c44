"""Test durable handlers: play the server in-process, or run a real one."""
