"""Benchmarks of vicifast and comparable libraries, in one interleaved run: `python -m benchmarks`."""
