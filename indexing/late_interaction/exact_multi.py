"""Exact MaxSim with every document: the multi-vector engine that is right by construction, and the judge of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.late_interaction.multi_index import Feedback, MultiIndex, Ranked
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import open_engine, save_engine


class ExactMultiIndex(MultiIndex):
    """Compares every query with every document.

    Args:
        dim: Numbers in a token vector.
        codec: How they are kept, see `token_codecs`; scores are exact for what is kept.
        pooling: Keep means of so many like tokens; 1 keeps all.
        folder: Where to keep what is added, in files without names; None keeps it in memory.
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
        """Return the best ``k`` documents of each query by MaxSim; equal scores by lower row.

        Args:
            queries: Q of them.
            k: Hits for each, clipped to the number of documents.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over.
            tau: Joins query rows of at least this cosine (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF).

        Raises:
            InputError: Another width, NaN, an empty query, k below 1.
        """
        places = self._places(allowed)

        def rank(query: np.ndarray, weights: np.ndarray | None, k: int) -> Ranked:
            return self._exact(query, weights, k, places, tau)

        return self._search_each(queries, k, rank, feedback, places)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        save_engine(directory, self.kind, self.store.fields(), self.store.writers(), fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None, *, folder: Path | None = None) -> ExactMultiIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`.

        Args:
            directory: Where it was saved.
            fingerprint: Of the encoder that will ask; None asks nobody.
            folder: Where to keep what is added from now on.
        """
        opened = open_engine(directory, cls.kind, fingerprint)
        index = cls(opened.fields["dim"])
        index.store = TokenStore.from_opened(opened.fields, opened, folder)
        return index
