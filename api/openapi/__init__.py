"""Additions to the OpenAPI document that FastAPI generates."""
