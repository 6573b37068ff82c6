"""The Python client of the service, synchronous and asynchronous."""

from embedserve.client.calls import Retries, ServiceError
from embedserve.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Retries", "ServiceError"]
