"""What this machine makes of flashray: `python -m benchmarks.speed`."""
