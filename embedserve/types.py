"""The values that pass between the packages."""

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
        task: What the texts are; a query may be encoded otherwise than a document.
        lexical_ids: For encoders with sparse weights, the vocabulary entries (int64) that each text may weigh.
        context_ids: For encoders with a second model in front of the decoder, the ids (int64) that it reads.
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
        """(N,) int64, ids of each text."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, the tokens the model reads for each text; ids below 0 are the strategy's own marks."""
        return np.array([np.count_nonzero(row >= 0) for row in self.ids], dtype=np.int64)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """Return the rows of all ``parts``, at least one, all of one task and one encoder, as one value."""

        def joined(lists: Sequence[list[np.ndarray] | None]) -> list[np.ndarray] | None:
            return None if any(rows is None for rows in lists) else [row for rows in lists for row in rows or ()]

        return cls(
            [row for part in parts for row in part.ids],
            np.concatenate([part.pooled_from for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            parts[0].task,
            joined([part.lexical_ids for part in parts]),
            joined([part.context_ids for part in parts]),
        )

    def take(self, places: np.ndarray) -> TokenRows:
        """Return the rows at ``places`` (n,) int64, in that order."""
        return TokenRows(
            [self.ids[place] for place in places],
            self.pooled_from[places],
            self.truncated[places],
            self.task,
            None if self.lexical_ids is None else [self.lexical_ids[place] for place in places],
            None if self.context_ids is None else [self.context_ids[place] for place in places],
        )


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

    def take(self, places: np.ndarray) -> Embeddings:
        """Return the vectors of the texts at ``places`` (n,) int64, in that order."""
        return Embeddings(self.vectors[places], self.tokens[places], self.truncated[places])

    @classmethod
    def concatenate(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Return the texts of all ``parts``, at least one, as one value in the same order."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


@dataclass(frozen=True)
class TokenEmbeddings:
    """Token vectors of texts for late interaction, in the order of the texts.

    Attributes:
        vectors: (sum of rows, d) float32, unit length; the rows of one text stand together.
        offsets: (N + 1,) int64; the rows of text i are ``vectors[offsets[i] : offsets[i + 1]]``.
        token_ids: (sum of rows,) int64, the vocabulary entry that each row was read at; -1 for a mean of several.
        tokens: (N,) int64, the tokens the model read for each text.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    token_ids: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> np.ndarray:
        """Return the rows (t, d) of one text."""
        return self.vectors[self.offsets[place] : self.offsets[place + 1]]

    def take(self, places: np.ndarray) -> TokenEmbeddings:
        """Return the token vectors of the texts at ``places`` (n,) int64, in that order."""
        rows, offsets = take_rows(self.offsets, places)
        return TokenEmbeddings(
            self.vectors[rows], offsets, self.token_ids[rows], self.tokens[places], self.truncated[places]
        )

    @classmethod
    def concatenate(cls, parts: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
        """Return the texts of all ``parts``, at least one, as one value in the same order."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            concatenate_offsets([part.offsets for part in parts]),
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


@dataclass(frozen=True)
class SparseEmbeddings:
    """Weights of vocabulary entries, in the order of the texts; score two texts by the dot product of their weights.

    Attributes:
        indices: (sum of entries,) int64, vocabulary entries, ascending within a text.
        values: (sum of entries,) float32, not negative.
        offsets: (N + 1,) int64; the entries of text i are those from ``offsets[i]`` to ``offsets[i + 1]``.
        tokens: (N,) int64, the tokens the model read for each text.
        truncated: (N,) bool, whether the text was cut to fit ``max_tokens``.
    """

    indices: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> dict[int, float]:
        """Return the weights of one text by vocabulary entry."""
        part = slice(self.offsets[place], self.offsets[place + 1])
        return dict(zip(self.indices[part].tolist(), self.values[part].tolist(), strict=True))

    def take(self, places: np.ndarray) -> SparseEmbeddings:
        """Return the weights of the texts at ``places`` (n,) int64, in that order."""
        entries, offsets = take_rows(self.offsets, places)
        return SparseEmbeddings(
            self.indices[entries], self.values[entries], offsets, self.tokens[places], self.truncated[places]
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SparseEmbeddings]) -> SparseEmbeddings:
        """Return the texts of all ``parts``, at least one, as one value in the same order."""
        return cls(
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.values for part in parts]),
            concatenate_offsets([part.offsets for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


def shorten(vectors: np.ndarray, dimensions: int | None, *, normalize: bool = True) -> np.ndarray:
    """Return the first ``dimensions`` columns of unit vectors (N, d), normalised again unless told otherwise."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    if not normalize:
        return short
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Encoded:
    """Everything that one forward pass gave; what an encoder does not make is None."""

    dense: Embeddings | None = None
    multi: TokenEmbeddings | None = None
    sparse: SparseEmbeddings | None = None

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, the tokens the model read for each text."""
        return self._made.tokens

    @property
    def truncated(self) -> np.ndarray:
        """(N,) bool, whether the text was cut to fit ``max_tokens``."""
        return self._made.truncated

    @property
    def _made(self) -> Embeddings | TokenEmbeddings | SparseEmbeddings:
        made = self.dense or self.multi or self.sparse
        if made is None:
            raise ValueError("an encoder makes at least one kind of vector")
        return made

    @property
    def size(self) -> int:
        """How many numbers the vectors hold."""
        sizes = [part.vectors.size for part in (self.dense, self.multi) if part is not None]
        return sum(sizes) + (self.sparse.values.size if self.sparse is not None else 0)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def concatenate(cls, parts: Sequence[Encoded]) -> Encoded:
        """Return the texts of all ``parts``, at least one and all of the same encoder, as one value."""
        dense = [part.dense for part in parts if part.dense is not None]
        multi = [part.multi for part in parts if part.multi is not None]
        sparse = [part.sparse for part in parts if part.sparse is not None]
        return cls(
            Embeddings.concatenate(dense) if dense else None,
            TokenEmbeddings.concatenate(multi) if multi else None,
            SparseEmbeddings.concatenate(sparse) if sparse else None,
        )

    def take(self, places: np.ndarray) -> Encoded:
        """Return what belongs to the texts at ``places`` (n,) int64, in that order."""
        return Encoded(
            self.dense and self.dense.take(places),
            self.multi and self.multi.take(places),
            self.sparse and self.sparse.take(places),
        )

    def shortened(self, dimensions: int | None, *, normalize: bool = True) -> Encoded:
        """Return the same with only the first ``dimensions`` of the vectors of texts and of tokens."""
        if dimensions is None:
            return self
        dense, multi = self.dense, self.multi
        return Encoded(
            dense and replace(dense, vectors=shorten(dense.vectors, dimensions, normalize=normalize)),
            multi and replace(multi, vectors=shorten(multi.vectors, dimensions, normalize=normalize)),
            self.sparse,
        )
