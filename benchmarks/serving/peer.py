"""Shared parts of the servers that embedserve is compared with."""

from __future__ import annotations

import json
import socket
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from embedserve import Encoder


class TextsBody(BaseModel):
    """Request body."""

    input: list[str] | str

    def texts(self) -> list[str]:
        """Return the texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def sentence_transformer(model: str) -> Any:
    """Return the sentence-transformers model of a spec or folder, limited to one torch thread."""
    torch.set_num_threads(1)
    return Encoder.load(model, device="cpu").model


def print_address(port: int, batching: str) -> None:
    """Print the line that `benchmarks.serving.processes.serving` reads."""
    print(json.dumps({"address": f"http://127.0.0.1:{port}", "batching": batching}), flush=True)


def run(app: FastAPI, batching: str) -> None:
    """Serve ``app`` on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    print_address(listener.getsockname()[1], batching)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
