"""Responses as bytes."""
