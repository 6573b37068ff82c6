"""Naive server for comparison: a FastAPI handler that calls `encode`, one request at a time."""

from __future__ import annotations

import sys
import threading

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.peer import TextsBody, run, sentence_transformer


class VectorItem(BaseModel):
    """The vector of one text."""

    index: int
    embedding: list[float]


class VectorList(BaseModel):
    """Response body."""

    data: list[VectorItem]


def naive_app(model: str) -> FastAPI:
    """Return the application."""
    encoder, app, lock = sentence_transformer(model), FastAPI(), threading.Lock()

    @app.post("/embed")
    def embed(body: TextsBody) -> VectorList:
        with lock:
            vectors = encoder.encode(body.texts(), batch_size=32, show_progress_bar=False)
        return VectorList(data=[VectorItem(index=n, embedding=row.tolist()) for n, row in enumerate(vectors)])

    return app


if __name__ == "__main__":
    run(naive_app(sys.argv[1]), "none: one request at a time, encode(batch_size=32)")
