"""The determinism check: play back what a handler reads outside of steps, and change it."""
