"""Measurements: every number in the README and the docs comes from a command in here."""
