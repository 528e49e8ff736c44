"""What the real server does, recorded, so that the simulator can be held against it."""
