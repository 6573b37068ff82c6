"""Benchmarks of encoders: speed and quality."""
