"""The Python client of the service."""

from embedserve.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
