"""Benchmarks of indexes and collections."""
