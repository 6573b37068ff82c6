"""What the servers that embedserve is measured beside have in common."""

from __future__ import annotations

import json
import socket
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from embedserve import Encoder


class Body(BaseModel):
    """Texts."""

    input: list[str] | str

    def texts(self) -> list[str]:
        """Return them as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def sentence_transformer(model: str) -> Any:
    """Return the model as sentence-transformers has it, with one thread for matrix products."""
    torch.set_num_threads(1)
    return Encoder.load(model, device="cpu").model


def say_where(port: int, batching: str) -> None:
    """Print the line that `benchmarks.serving.processes` waits for."""
    print(json.dumps({"address": f"http://127.0.0.1:{port}", "batching": batching}), flush=True)


def run(app: FastAPI, batching: str) -> None:
    """Serve ``app`` on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    say_where(listener.getsockname()[1], batching)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
