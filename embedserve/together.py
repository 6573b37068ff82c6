"""Several encoders over one decoder: it runs once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from embedserve.build import DENSE
from embedserve.encoder import BLOCK, Encoder
from embedserve.errors import SpecError
from embedserve.types import Task, TokenRows


def embed_together(encoders: Sequence[Encoder], texts: Sequence[str], task: Task = "document") -> list[np.ndarray]:
    """Return the unit vectors (N, d) float32 that each of ``encoders`` gives for ``texts``.

    Args:
        encoders: At least one, all of one `Encoder.states_digest`.
        texts: Non-empty strings.
        task: Which prompt to use.

    Raises:
        SpecError: The encoders read different states, or one makes no dense vectors.
    """
    first = encoders[0]
    if len({encoder.states_digest for encoder in encoders}) > 1 or any("dense" not in e.outputs for e in encoders):
        names = ", ".join(encoder.spec.strategy for encoder in encoders)
        raise SpecError(f"{names} cannot share one pass of a decoder: embed with each by itself", field="encoders")
    out = [np.empty((len(texts), encoder.dim), dtype=np.float32) for encoder in encoders]

    def run(rows: TokenRows) -> list[Tensor]:
        features = first.first_features(rows)
        return [encoder.finish(dict(features), task)[DENSE] for encoder in encoders]

    for start in range(0, len(texts), BLOCK):
        for places, vectors in first.batches(first.tokenize(texts[start : start + BLOCK], task, start), run):
            for rows, found in zip(out, vectors, strict=True):
                rows[start + places] = found.cpu().numpy()
    return out
