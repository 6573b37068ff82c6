"""Segments: documents and the vectors of their fields, in memory and in immutable files."""
