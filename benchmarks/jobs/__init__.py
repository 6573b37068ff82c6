"""Benchmarks of the offline job."""
