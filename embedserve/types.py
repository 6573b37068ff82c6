"""Token ids and embeddings, the values that the packages exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from embedserve.ragged import concatenate_offsets, take_rows

Task = Literal["query", "document"]


@dataclass(frozen=True)
class TokenRows:
    """Texts as token ids, ready for the model.

    Attributes:
        ids: One int64 array of token ids per text, prompt and special tokens included.
        pooled_from: (N,) int64, the first position of each row that pooling may read.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
        task: Whether the texts are queries or documents; some encoders treat them differently.
        lexical_ids: For sparse encoders, the vocabulary entries (int64) to which each text may give a weight.
        context_ids: For encoders with a second model before the decoder, its token ids (int64).
    """

    ids: list[np.ndarray]
    pooled_from: np.ndarray
    truncated: np.ndarray
    task: Task = "document"
    lexical_ids: list[np.ndarray] | None = None
    context_ids: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, the number of ids of each text."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, the tokens the model reads for each text; ids below 0 are the strategy's own marks."""
        return np.array([np.count_nonzero(row >= 0) for row in self.ids], dtype=np.int64)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """Concatenate the rows of ``parts``, at least one, all of the same task and encoder."""

        def concatenated(lists: Sequence[list[np.ndarray] | None]) -> list[np.ndarray] | None:
            return None if any(rows is None for rows in lists) else [row for rows in lists for row in rows or ()]

        return cls(
            [row for part in parts for row in part.ids],
            np.concatenate([part.pooled_from for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            parts[0].task,
            concatenated([part.lexical_ids for part in parts]),
            concatenated([part.context_ids for part in parts]),
        )

    def take(self, indices: np.ndarray) -> TokenRows:
        """Return the rows at ``indices`` (n,) int64, in that order."""
        return TokenRows(
            [self.ids[index] for index in indices],
            self.pooled_from[indices],
            self.truncated[indices],
            self.task,
            None if self.lexical_ids is None else [self.lexical_ids[index] for index in indices],
            None if self.context_ids is None else [self.context_ids[index] for index in indices],
        )


@dataclass(frozen=True)
class Embeddings:
    """Vectors of texts, in the order of the texts.

    Attributes:
        vectors: (N, d) float32, unit length.
        tokens: (N,) int64, the number of tokens read for each text.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    vectors: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, indices: np.ndarray) -> Embeddings:
        """Return the vectors of the texts at ``indices`` (n,) int64, in that order."""
        return Embeddings(self.vectors[indices], self.tokens[indices], self.truncated[indices])

    @classmethod
    def concatenate(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Concatenate the texts of ``parts``, at least one, in order."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


@dataclass(frozen=True)
class TokenEmbeddings:
    """Token vectors of texts for late interaction, in the order of the texts.

    Attributes:
        vectors: (sum of rows, d) float32, unit length; the rows of a text are contiguous.
        offsets: (N + 1,) int64; the rows of text i are ``vectors[offsets[i] : offsets[i + 1]]``.
        token_ids: (sum of rows,) int64, the token of each row; -1 for the mean of several.
        tokens: (N,) int64, the number of tokens read for each text.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    token_ids: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the rows (t, d) of one text."""
        return self.vectors[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: np.ndarray) -> TokenEmbeddings:
        """Return the token vectors of the texts at ``indices`` (n,) int64, in that order."""
        rows, offsets = take_rows(self.offsets, indices)
        return TokenEmbeddings(
            self.vectors[rows], offsets, self.token_ids[rows], self.tokens[indices], self.truncated[indices]
        )

    @classmethod
    def concatenate(cls, parts: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
        """Concatenate the texts of ``parts``, at least one, in order."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            concatenate_offsets([part.offsets for part in parts]),
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


@dataclass(frozen=True)
class SparseEmbeddings:
    """Weights of vocabulary entries, in the order of the texts; the score of two texts is their dot product.

    Attributes:
        indices: (sum of entries,) int64, vocabulary entries, ascending within a text.
        values: (sum of entries,) float32, not negative.
        offsets: (N + 1,) int64; the entries of text i are ``offsets[i]`` to ``offsets[i + 1]`` (exclusive).
        tokens: (N,) int64, the number of tokens read for each text.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    indices: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[int, float]:
        """Return the weights of one text by vocabulary entry."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return dict(zip(self.indices[part].tolist(), self.values[part].tolist(), strict=True))

    def take(self, indices: np.ndarray) -> SparseEmbeddings:
        """Return the weights of the texts at ``indices`` (n,) int64, in that order."""
        entries, offsets = take_rows(self.offsets, indices)
        return SparseEmbeddings(
            self.indices[entries], self.values[entries], offsets, self.tokens[indices], self.truncated[indices]
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SparseEmbeddings]) -> SparseEmbeddings:
        """Concatenate the texts of ``parts``, at least one, in order."""
        return cls(
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.values for part in parts]),
            concatenate_offsets([part.offsets for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


def shorten(vectors: np.ndarray, dimensions: int | None, *, normalize: bool = True) -> np.ndarray:
    """Return the first ``dimensions`` columns of unit vectors (N, d), normalised again if ``normalize``."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    if not normalize:
        return short
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Encoded:
    """The outputs of one forward pass; None for kinds of vectors that the encoder does not compute."""

    dense: Embeddings | None = None
    multi: TokenEmbeddings | None = None
    sparse: SparseEmbeddings | None = None

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, the number of tokens read for each text."""
        return self._first.tokens

    @property
    def truncated(self) -> np.ndarray:
        """(N,) bool, whether the text was cut to fit ``max_tokens``."""
        return self._first.truncated

    @property
    def _first(self) -> Embeddings | TokenEmbeddings | SparseEmbeddings:
        first = self.dense or self.multi or self.sparse
        if first is None:
            raise ValueError("at least one of dense, multi and sparse must be set")
        return first

    @property
    def size(self) -> int:
        """The number of values in all vectors."""
        sizes = [part.vectors.size for part in (self.dense, self.multi) if part is not None]
        return sum(sizes) + (self.sparse.values.size if self.sparse is not None else 0)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def concatenate(cls, parts: Sequence[Encoded]) -> Encoded:
        """Concatenate the texts of ``parts``, at least one, all of the same encoder."""
        dense = [part.dense for part in parts if part.dense is not None]
        multi = [part.multi for part in parts if part.multi is not None]
        sparse = [part.sparse for part in parts if part.sparse is not None]
        return cls(
            Embeddings.concatenate(dense) if dense else None,
            TokenEmbeddings.concatenate(multi) if multi else None,
            SparseEmbeddings.concatenate(sparse) if sparse else None,
        )

    def take(self, indices: np.ndarray) -> Encoded:
        """Return the outputs of the texts at ``indices`` (n,) int64, in that order."""
        return Encoded(
            self.dense and self.dense.take(indices),
            self.multi and self.multi.take(indices),
            self.sparse and self.sparse.take(indices),
        )

    def shortened(self, dimensions: int | None, *, normalize: bool = True) -> Encoded:
        """Return a copy whose dense and token vectors are shortened to the first ``dimensions``."""
        if dimensions is None:
            return self
        dense, multi = self.dense, self.multi
        return Encoded(
            dense and replace(dense, vectors=shorten(dense.vectors, dimensions, normalize=normalize)),
            multi and replace(multi, vectors=shorten(multi.vectors, dimensions, normalize=normalize)),
            self.sparse,
        )
