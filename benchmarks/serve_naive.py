"""The server that many write first: a FastAPI handler that calls encode, one request at a time."""

from __future__ import annotations

import json
import socket
import sys
import threading

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from embedserve import Encoder


class Body(BaseModel):
    """Texts."""

    input: list[str] | str


class Item(BaseModel):
    """A vector."""

    index: int
    embedding: list[float]


class Answer(BaseModel):
    """Vectors."""

    data: list[Item]


def naive_app(model: str) -> FastAPI:
    """Return the application."""
    torch.set_num_threads(1)
    encoder = Encoder.load(model, device="cpu").model
    app, lock = FastAPI(), threading.Lock()

    @app.post("/embed")
    def embed(body: Body) -> Answer:
        texts = [body.input] if isinstance(body.input, str) else body.input
        with lock:
            vectors = encoder.encode(texts, batch_size=32, show_progress_bar=False)
        return Answer(data=[Item(index=n, embedding=row.tolist()) for n, row in enumerate(vectors)])

    return app


if __name__ == "__main__":
    app = naive_app(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"address": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
