"""One script per claim; ``python -m benchmarks`` runs all of them, or those named after it."""
