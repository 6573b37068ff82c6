"""Several encoders over one decoder: it runs once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from embedserve.build import DENSE
from embedserve.encoder import BLOCK, Encoder, check_input
from embedserve.errors import SpecError
from embedserve.types import Embeddings, Task, TokenRows


def embed_together(encoders: Sequence[Encoder], texts: Sequence[str], task: Task = "document") -> list[Embeddings]:
    """Return what each of ``encoders`` gives for ``texts``: the same vectors as its own `Encoder.embed`.

    Args:
        encoders: At least one, all of one `Encoder.states_digest`.
        texts: Non-empty strings.
        task: Which prompt to use.

    Raises:
        InputError: A text is empty or no string, or there is no such task.
        SpecError: The encoders read different states, or one makes no dense vectors.
    """
    check_input(texts, task)
    first = encoders[0]
    if len({encoder.states_digest for encoder in encoders}) > 1 or any("dense" not in e.outputs for e in encoders):
        names = ", ".join(encoder.spec.strategy for encoder in encoders)
        raise SpecError(f"{names} cannot share one pass of a decoder: embed with each by itself", field="encoders")
    out = [np.empty((len(texts), encoder.dim), dtype=np.float32) for encoder in encoders]
    tokens, truncated = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)

    def run(rows: TokenRows) -> list[Tensor]:
        features = first.first_features(rows)
        return [encoder.finish(dict(features), task)[DENSE] for encoder in encoders]

    for start in range(0, len(texts), BLOCK):
        block = first.tokenize(texts[start : start + BLOCK], task, start)
        tokens[start : start + BLOCK], truncated[start : start + BLOCK] = block.tokens, block.truncated
        for places, vectors in first.batches(block, run):
            for rows, found in zip(out, vectors, strict=True):
                rows[start + places] = found.cpu().numpy()
    return [Embeddings(vectors, tokens, truncated) for vectors in out]
