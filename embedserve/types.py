"""The values that pass between the packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Task = Literal["query", "document"]


@dataclass(frozen=True)
class TokenRows:
    """Texts as token ids, ready for the model.

    Attributes:
        ids: One int64 array of token ids per text, prompt and special tokens included.
        pooled_from: (N,) int64, the first position of each row that pooling may read.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    ids: list[np.ndarray]
    pooled_from: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, the tokens the model reads for each text."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)


@dataclass(frozen=True)
class Embeddings:
    """Vectors of texts, in the order of the texts.

    Attributes:
        vectors: (N, d) float32, unit length.
        tokens: (N,) int64, the tokens the model read for each text.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    vectors: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def concatenate(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Return the texts of all ``parts``, at least one, as one value in the same order."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )
