"""FastAPI with `batched`, which joins texts of several requests as in its README; answers by orjson, in its favour."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Response

from benchmarks.serving.peer import TextsBody, run, sentence_transformer

BATCHING = {"batch_size": 32, "timeout_ms": 5.0, "small_batch_threshold": 8}  # its defaults


def batched_app(model: str) -> FastAPI:
    """Return the application."""
    encoder, app, batched = sentence_transformer(model), FastAPI(), import_module("batched")

    def encode(sentences: list[str]) -> Any:
        return encoder.encode(sentences, batch_size=32, show_progress_bar=False)

    embed_sentences = batched.dynamically(encode, **BATCHING)

    @app.post("/embed")
    async def embed(body: TextsBody) -> Response:
        vectors = await embed_sentences.acall(body.texts())
        response = {"data": [{"index": n, "embedding": row} for n, row in enumerate(vectors)]}
        return Response(orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


if __name__ == "__main__":
    settings = ", ".join(f"{name} {value}" for name, value in BATCHING.items())
    run(batched_app(sys.argv[1]), f"batched {version('batched')}, texts of several requests: {settings} (its defaults)")
