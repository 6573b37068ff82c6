"""Crash-safe files, checksums, growing arrays and row tables."""
