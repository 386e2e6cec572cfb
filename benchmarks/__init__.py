"""Benchmarks of vicifast with its peers beside it, in one interleaved run: `python -m benchmarks`."""
