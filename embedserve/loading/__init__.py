"""Encoders from specs, saved folders, heads and checkpoints."""
