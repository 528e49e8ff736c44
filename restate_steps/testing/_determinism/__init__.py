"""The check for determinism: what a handler reads outside of steps, played back and changed."""
