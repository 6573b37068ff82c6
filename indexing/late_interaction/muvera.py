"""MUVERA: retrieves candidates by one vector per document, then ranks them by exact MaxSim.

1. A faiss index over compressed fixed dimensional encodings (`indexing.late_interaction.fde`) retrieves candidates.
2. Optional: if the codes are too coarse, the first stage retrieves more, and uncompressed float16 encodings select the
   candidates.
3. Exact MaxSim with the token vectors ranks the candidates.

Dhulipala et al. 2024, arXiv 2405.19504; the second stage is not in the paper. The defaults come from
`benchmarks.indexes.late_interaction_search`, see docs/indexing.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.engines.faiss_factory import check_rows, new_index
from indexing.engines.faiss_index import import_faiss
from indexing.late_interaction.fde_config import FdeConfig, check_same
from indexing.late_interaction.fde_index import TRAIN_DOCUMENTS, FdeIndex
from indexing.late_interaction.multi_index import EXACT_BELOW, Feedback, MultiIndex, Retrieve, check_count
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import open_engine, save_engine

CANDIDATES = 400
SCAN_FACTOR = 4  # documents of the first stage per candidate, if uncompressed encodings are kept
CODES = "auto"
MIN_PQ_TRAINING = 39 * 16  # faiss warns if 4-bit codes are trained on fewer encodings


def default_config(dim: int) -> FdeConfig:
    """Return the encoding of 20 · 2^6 · 8 = 10,240 dimensions; fewer if ``dim`` is below 8.

    On tokens of nano's ColBERT, more and smaller partitions had a higher recall than the paper's 20 · 2^5 · 16, above
    all with empty partitions left empty. Orthonormal projections did as well as any other, a centred encoding worse.
    """
    return FdeConfig(dim, bits=6, inner_dim=min(8, dim), fill=False)


def default_codes(size: int, count: int) -> str:
    """Return 4 bits for every four of ``size`` dimensions, in a single list, which faiss can filter.

    Falls back to one byte per dimension if ``count`` encodings are too few to train on, or ``size`` is not a multiple
    of 4.
    """
    return f"IVF1,PQ{size // 4}x4fs" if size % 4 == 0 and count >= MIN_PQ_TRAINING else "SQ8"


class MuveraIndex(MultiIndex):
    """Retrieves documents by fixed dimensional encodings and ranks them by exact MaxSim; see the module docstring.

    With fewer than ``exact_below`` documents there are no encodings, and every document is scored.

    Args:
        dim: Dimensions of a token vector.
        config: The encoding. Default: `default_config`.
        codes: The faiss factory string of the first stage, such as SQ8, RaBitQ, HNSW32 or Flat. Default: ``auto``, by
            `default_codes`. One bit per dimension, as in RaBitQ, requires an encoding with ``fill``.
        keeps_encodings: Whether to keep float16 encodings for the second stage: 2 · F bytes per document.
        exact_below: If fewer documents than this can match, all of them are scored.
        codec: How token vectors are stored, see `token_codecs`.
        pooling: Reduces the stored token vectors by this factor, by averaging similar ones. Default: 1, keep all.
        folder: Where to keep added vectors, in unnamed files. Default: in memory.

    Raises:
        InputError: A config of another width, or codes that faiss cannot train on so few documents.
        LoadError: faiss is not installed.
    """

    kind = "muvera"

    def __init__(
        self,
        dim: int,
        config: FdeConfig | None = None,
        *,
        codes: str = CODES,
        keeps_encodings: bool = False,
        exact_below: int = EXACT_BELOW,
        codec: str = "float16",
        pooling: int = 1,
        folder: Path | None = None,
    ) -> None:
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder), exact_below)
        self.config = default_config(dim) if config is None else config
        if self.config.dim != dim:
            raise InputError(f"config.dim is {self.config.dim}, the index has {dim}", field="config")
        codes = default_codes(self.config.size, exact_below) if codes == CODES else codes
        faiss = import_faiss()
        empty = new_index(faiss, self.config.size, codes, "inner_product")
        check_rows(faiss, empty, codes, min(exact_below, TRAIN_DOCUMENTS))
        self.codes, self.keeps_encodings = codes, keeps_encodings
        self._folder = folder
        self._encoded: FdeIndex | None = None

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`.

        Encodings are computed once there are ``exact_below`` documents. The centre and the codes are trained on these
        and do not change later.
        """
        first = len(self.store.table.rows)
        super().add(rows, documents)
        if self._encoded is not None:
            self._encoded.add(first)
        elif len(self) >= self.exact_below:
            self._encoded = FdeIndex.build(
                self.store, self.config, self.codes, keeps_encodings=self.keeps_encodings, folder=self._folder
            )

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        super().remove(rows)
        if self._encoded is not None:
            self._encoded.remove(rows)

    def search(
        self,
        queries: TokenEmbeddings,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        candidates: int = CANDIDATES,
        scanned: int | None = None,
        tau: float | None = None,
        feedback: Feedback | None = None,
    ) -> Hits:
        """Return the best ``k`` candidates of each query; the scores are exact MaxSim.

        Args:
            queries: Q queries.
            k: Hits per query, clipped to the number of documents.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored. If fewer than ``exact_below``
                remain, all of them are scored. Default: all.
            candidates: Documents scored by MaxSim, at least ``k``.
            scanned: Documents retrieved by the first stage if encodings are kept, at least ``candidates``. Default:
                four times as many.
            tau: Merges query rows of at least this cosine for MaxSim (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF); vocabulary entries are looked up in the candidates.

        Raises:
            InputError: Another width, NaN, an empty query, numbers below 1.
        """
        check_count("candidates", candidates)
        check_count("scanned", scanned)
        encoded = self._encoded
        retrieve: Retrieve | None = None
        if encoded is not None:

            def by_encodings(query: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
                return encoded.retrieve(query, weights, count, max(scanned or SCAN_FACTOR * count, count), allowed)

            retrieve = by_encodings

        return self._search(queries, k, allowed, retrieve, candidates=candidates, tau=tau, feedback=feedback)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        fields: dict[str, Any] = {
            "tokens": self.store.fields(),
            "config": dataclasses.asdict(self.config),
            "codes": self.codes,
            "keeps_encodings": self.keeps_encodings,
            "exact_below": self.exact_below,
            "encoder": None,
        }
        files = self.store.writers()
        if self._encoded is not None:
            fields["encoder"] = self._encoded.encoder.describe()
            files |= self._encoded.writers()
        save_engine(directory, self.kind, fields, files, fingerprint)

    @classmethod
    def load(
        cls,
        directory: Path,
        fingerprint: str | None = None,
        *,
        config: FdeConfig | None = None,
        folder: Path | None = None,
    ) -> MuveraIndex:
        """Return the index that `save` wrote; the errors are also those of `indexing.storage.engine_files.open_engine`.

        Args:
            directory: Where it was saved.
            fingerprint: Of the encoder of the queries. Default: not checked.
            config: The expected encoding. Default: not checked.
            folder: Where to keep vectors added later. Default: in memory.

        Raises:
            IndexMismatchError: The index has another encoding than ``config``; the message names the differences.
        """
        saved = open_engine(directory, cls.kind, fingerprint)
        fields = saved.fields
        stored = FdeConfig.from_saved(fields["config"])
        if config is not None:
            check_same(dataclasses.asdict(stored), dataclasses.asdict(config), "fixed dimensional encoding")
        index = cls(
            fields["tokens"]["dim"],
            stored,
            codes=fields["codes"],
            keeps_encodings=fields["keeps_encodings"],
            exact_below=fields["exact_below"],
            folder=folder,
        )
        index.store = TokenStore.from_saved(fields["tokens"], saved, folder)
        if fields["encoder"] is not None:
            index._encoded = FdeIndex.from_saved(index.store, fields["encoder"], index.codes, saved, folder)
        return index
