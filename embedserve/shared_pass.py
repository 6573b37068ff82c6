"""Several encoders over one decoder: its layers run once for all of them, whichever of their outputs each one reads."""

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
    """Return what each of ``encoders`` gives for ``texts``: the same vectors as its own `Encoder.embed`, to 1e-5.

    Where they read different states of the decoder, the outputs (B, T, D) of all its layers are kept for one batch.

    Args:
        encoders: At least one, all of one `Encoder.passes_digest`.
        texts: Non-empty strings.
        task: Which prompt to use.

    Raises:
        InputError: A text is empty or no string, or there is no such task.
        SpecError: The encoders need passes of their own, or one makes no dense vectors.
    """
    check_input(texts, task)
    if len({encoder.passes_digest for encoder in encoders}) > 1 or any("dense" not in e.outputs for e in encoders):
        names = ", ".join(encoder.spec.strategy for encoder in encoders)
        raise SpecError(f"{names} cannot share one pass of a decoder: embed with each by itself", field="encoders")
    groups: dict[str, list[int]] = {}  # encoders of the same states, by number
    for number, encoder in enumerate(encoders):
        groups.setdefault(encoder.states_digest, []).append(number)
    leaders = [encoders[group[0]] for group in groups.values()]
    out = [np.empty((len(texts), encoder.dim), dtype=np.float32) for encoder in encoders]
    tokens, truncated = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)
    with _Layers(leaders) if len(leaders) > 1 else ExitStack() as layers:

        def run(rows: _JointRows) -> list[Tensor]:
            found: list[Tensor] = [Tensor()] * len(encoders)
            kept: list[Tensor] | None = None
            for leader, own, group in zip(leaders, rows.parts, groups.values(), strict=True):
                if isinstance(layers, _Layers):
                    with layers.keeping() if kept is None else layers.repeating(kept) as outputs:
                        features = leader.first_features(own)
                    kept = kept or outputs
                else:
                    features = leader.first_features(own)
                for number in group:
                    found[number] = encoders[number].finish(dict(features), task)[DENSE]
            return found

        for start in range(0, len(texts), BLOCK):
            part = texts[start : start + BLOCK]
            block = _JointRows([leader.tokenize(part, task, start) for leader in leaders])
            first = block.parts[0]
            tokens[start : start + BLOCK], truncated[start : start + BLOCK] = first.tokens, first.truncated
            joint: Any = block
            for places, vectors in leaders[0].batches(joint, run):  # type: ignore[arg-type]
                for rows, made in zip(out, vectors, strict=True):
                    rows[start + places] = made.cpu().numpy()
    return [Embeddings(vectors, tokens, truncated) for vectors in out]


@dataclass(frozen=True)
class _JointRows:
    """The same token ids as each of several encoders pools them."""

    parts: list[TokenRows]

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def lengths(self) -> np.ndarray:
        return self.parts[0].lengths

    def take(self, places: np.ndarray) -> _JointRows:
        return _JointRows([part.take(places) for part in self.parts])


class _Layers:
    """The layers of several copies of one decoder, which hand over kept outputs where a thread asks for that.

    Everything around the layers runs as ever, so hooks on them see what they would see.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._copies = [decoder_layers(decoder_of(encoder.model[0])) for encoder in encoders]
        self._local = threading.local()
        self._changed: list[nn.Module] = []

    def __enter__(self) -> _Layers:
        for copy in self._copies:
            for number, layer in enumerate(copy):
                if layer not in self._changed:
                    self._watch(layer, number)
                    self._changed.append(layer)
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._changed:
            del layer.forward
        self._changed.clear()

    def _watch(self, layer: Any, number: int) -> None:
        own = layer.forward

        def forward(*args: Any, **named: Any) -> Any:
            repeated = getattr(self._local, "repeated", None)
            if repeated is not None:
                return repeated[number]
            output = own(*args, **named)
            if (kept := getattr(self._local, "kept", None)) is not None:
                kept.append(output)
            return output

        layer.forward = forward

    @contextmanager
    def keeping(self) -> Iterator[list[Any]]:
        """Keep what the layers return in this thread."""
        self._local.kept = []
        try:
            yield self._local.kept
        finally:
            self._local.kept = None

    @contextmanager
    def repeating(self, outputs: list[Any]) -> Iterator[list[Any]]:
        """Let the layers return ``outputs`` in this thread instead of running."""
        self._local.repeated = outputs
        try:
            yield outputs
        finally:
            self._local.repeated = None
