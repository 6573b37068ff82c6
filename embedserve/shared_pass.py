"""Embeds texts with several encoders over one decoder in a single pass of its layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from embedserve.compat import decoder_of
from embedserve.decoder import decoder_layers
from embedserve.encoder import BLOCK, Encoder
from embedserve.errors import SpecError
from embedserve.loading.build import DENSE
from embedserve.tokens import check_input
from embedserve.types import Embeddings, Task, TokenRows


def embed_together(encoders: Sequence[Encoder], texts: Sequence[str], task: Task = "document") -> list[Embeddings]:
    """Return the embeddings of ``texts`` by each encoder: the same as its own `Encoder.embed`, to 1e-5.

    If the encoders read different states, the outputs (B, T, D) of all layers are held in memory for one batch.

    Args:
        encoders: At least one, all with the same `Encoder.passes_digest`.
        texts: Non-empty strings.
        task: Selects the prompt.

    Raises:
        InputError: A text is empty or not a string, or the task is unknown.
        SpecError: The encoders cannot share a pass, or one has no dense vectors.
    """
    check_input(texts, task)
    if len({encoder.passes_digest for encoder in encoders}) > 1 or any("dense" not in e.outputs for e in encoders):
        names = ", ".join(encoder.spec.strategy for encoder in encoders)
        raise SpecError(f"{names} cannot share one pass of a decoder: embed with each separately", field="encoders")
    groups: dict[str, list[int]] = {}  # indices of the encoders by the states that they read
    for index, encoder in enumerate(encoders):
        groups.setdefault(encoder.states_digest, []).append(index)
    leaders = [encoders[group[0]] for group in groups.values()]
    out = [np.empty((len(texts), encoder.dim), dtype=np.float32) for encoder in encoders]
    tokens, truncated = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)
    with _SharedLayers(leaders) if len(leaders) > 1 else ExitStack() as layers:

        def run(rows: _SharedRows) -> list[Tensor]:
            vectors: list[Tensor] = [Tensor()] * len(encoders)
            recorded: list[Any] | None = None
            for leader, part, group in zip(leaders, rows.parts, groups.values(), strict=True):
                if isinstance(layers, _SharedLayers):
                    with layers.recording() if recorded is None else layers.replaying(recorded) as outputs:
                        features = leader.first_features(part)
                    recorded = recorded or outputs
                else:
                    features = leader.first_features(part)
                for index in group:
                    vectors[index] = encoders[index].finish(dict(features), task)[DENSE]
            return vectors

        for start in range(0, len(texts), BLOCK):
            block = texts[start : start + BLOCK]
            shared = _SharedRows([leader.tokenize(block, task, start) for leader in leaders])
            first = shared.parts[0]
            tokens[start : start + BLOCK], truncated[start : start + BLOCK] = first.tokens, first.truncated
            rows: Any = shared
            for indices, batch in leaders[0].batches(rows, run):  # type: ignore[arg-type]
                for matrix, vectors in zip(out, batch, strict=True):
                    matrix[start + indices] = vectors.cpu().numpy()
    return [Embeddings(vectors, tokens, truncated) for vectors in out]


@dataclass(frozen=True)
class _SharedRows:
    """Equal token ids for several encoders, which may pool different positions."""

    parts: list[TokenRows]

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def lengths(self) -> np.ndarray:
        return self.parts[0].lengths

    def take(self, indices: np.ndarray) -> _SharedRows:
        return _SharedRows([part.take(indices) for part in self.parts])


class _SharedLayers:
    """The layers of several copies of one decoder; each thread can record their outputs and replay them.

    Only the ``forward`` of the layers is replaced, so hooks on them run as usual.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._decoders = [decoder_layers(decoder_of(encoder.model[0])) for encoder in encoders]
        self._local = threading.local()
        self._patched: list[nn.Module] = []

    def __enter__(self) -> _SharedLayers:
        for layers in self._decoders:
            for index, layer in enumerate(layers):
                if layer not in self._patched:
                    self._patch(layer, index)
                    self._patched.append(layer)
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._patched:
            del layer.forward
        self._patched.clear()

    def _patch(self, layer: Any, index: int) -> None:
        original = layer.forward

        def forward(*args: Any, **named: Any) -> Any:
            replayed = getattr(self._local, "replayed", None)
            if replayed is not None:
                return replayed[index]
            output = original(*args, **named)
            if (recorded := getattr(self._local, "recorded", None)) is not None:
                recorded.append(output)
            return output

        layer.forward = forward

    @contextmanager
    def recording(self) -> Iterator[list[Any]]:
        """Record the outputs of the layers in this thread."""
        self._local.recorded = []
        try:
            yield self._local.recorded
        finally:
            self._local.recorded = None

    @contextmanager
    def replaying(self, outputs: list[Any]) -> Iterator[list[Any]]:
        """Return ``outputs`` from the layers in this thread instead of running them."""
        self._local.replayed = outputs
        try:
            yield outputs
        finally:
            self._local.replayed = None
