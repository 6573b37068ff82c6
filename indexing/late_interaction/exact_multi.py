"""Exact MaxSim over all documents: the reference for the approximate multi-vector engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.late_interaction.multi_index import Feedback, MultiIndex
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import open_engine, save_engine


class ExactMultiIndex(MultiIndex):
    """Scores every document for every query.

    Args:
        dim: Dimensions of a token vector.
        codec: How token vectors are stored, see `token_codecs`; scores are exact for the stored vectors.
        pooling: Reduces the stored token vectors by this factor, by averaging similar ones. Default: 1, keep all.
        folder: Where to keep added vectors, in unnamed files. Default: in memory.
    """

    kind = "exact-multi"

    def __init__(self, dim: int, *, codec: str = "float16", pooling: int = 1, folder: Path | None = None) -> None:
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder))

    def search(
        self,
        queries: TokenEmbeddings,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        tau: float | None = None,
        feedback: Feedback | None = None,
    ) -> Hits:
        """Return the best ``k`` documents of each query by MaxSim; equal scores are ordered by row.

        Args:
            queries: Q queries.
            k: Hits per query, clipped to the number of documents.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored. Default: all.
            tau: Merges query rows of at least this cosine (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF).

        Raises:
            InputError: Another width, NaN, an empty query, k below 1.
        """
        return self._search(queries, k, allowed, None, tau=tau, feedback=feedback)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        save_engine(directory, self.kind, self.store.fields(), self.store.writers(), fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None, *, folder: Path | None = None) -> ExactMultiIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`.

        Args:
            directory: Where it was saved.
            fingerprint: Of the encoder of the queries. Default: not checked.
            folder: Where to keep vectors added later. Default: in memory.
        """
        saved = open_engine(directory, cls.kind, fingerprint)
        index = cls(saved.fields["dim"])
        index.store = TokenStore.from_saved(saved.fields, saved, folder)
        return index
