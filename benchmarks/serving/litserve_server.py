"""LitServe with its batching: requests are joined in a process of their own, one that computes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version

import litserve
import numpy as np

from benchmarks.serving.peer import print_address, sentence_transformer

BATCHING = {"max_batch_size": 32, "batch_timeout": 0.005}


class Embedding(litserve.LitAPI):  # type: ignore[misc]
    """Embeds the texts of up to 32 requests at a time."""

    def __init__(self, model: str) -> None:
        super().__init__(**BATCHING, api_path="/embed")
        self.path = model

    def setup(self, device: str) -> None:
        """Load the model in the process that computes."""
        self.model = sentence_transformer(self.path)

    # What LitServe does with a request depends on the annotations of these two; its examples have none.
    def decode_request(self, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return the texts of a request, which comes as a dictionary."""
        return [request["input"]] if isinstance(request["input"], str) else request["input"]

    def encode_response(self, output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return what becomes the JSON of an answer."""
        return {"data": [{"index": n, "embedding": row} for n, row in enumerate(output.tolist())]}

    def predict(self, requests: Sequence[list[str]]) -> list[np.ndarray]:
        """Return the vectors of each request (n, d), made of all texts at once."""
        together = [text for texts in requests for text in texts]
        vectors = self.model.encode(together, batch_size=32, show_progress_bar=False)
        return np.split(vectors, np.cumsum([len(texts) for texts in requests])[:-1])


if __name__ == "__main__":
    server = litserve.LitServer(Embedding(sys.argv[1]), accelerator="cpu", devices=1, workers_per_device=1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ", ".join(f"{name} {value}" for name, value in BATCHING.items())
    print_address(port, f"LitServe {version('litserve')}, whole requests: {settings} s, one worker")
    server.run("127.0.0.1", port, log_level="error", generate_client_file=False, access_log=False)
