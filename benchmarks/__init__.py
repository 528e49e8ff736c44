"""One script per claim. ``python -m benchmarks`` runs all of them, or the ones it is given."""
