"""LEMUR: retrieves candidates by one learned vector per document, then ranks them by exact MaxSim.

1. A faiss index over the documents' vectors (`indexing.late_interaction.lemur_encoder`) retrieves candidates by inner
   product.
2. Exact MaxSim with the token vectors ranks them.

Jääsaari, Hyvönen and Roos 2026, arXiv 2601.21853. Unlike the encodings of `indexing.late_interaction.muvera`, the
vectors are learned from the corpus: they are shorter, take longer to compute, and fit documents similar to those that
the index was trained on. Rebuild the index if later documents differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.engines.faiss_factory import check_rows, new_index
from indexing.engines.faiss_index import FaissIndex, build_index, import_faiss
from indexing.late_interaction.fde_config import check_same
from indexing.late_interaction.fde_index import check_codes, load_codes
from indexing.late_interaction.lemur_encoder import ENCODE_BLOCK, LemurEncoder
from indexing.late_interaction.lemur_features import LemurConfig
from indexing.late_interaction.multi_index import EXACT_BELOW, Feedback, MultiIndex, Retrieve, check_count
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import SavedEngine, array_writer, open_engine, save_engine

CANDIDATES = 400
CODES = "SQ8"
TRAIN_DOCUMENTS = 4_096  # read for training: 200 MiB of 100 tokens of 128 float32


class LemurIndex(MultiIndex):
    """Retrieves documents by learned vectors and ranks them by exact MaxSim; see the module docstring.

    With fewer than ``exact_below`` documents nothing is learned, and every document is scored.

    Args:
        dim: Dimensions of a token vector.
        config: The features to learn. Default: `LemurConfig` of ``dim``.
        codes: The faiss factory string of the documents' vectors, such as SQ8, SQ4 or Flat. One bit per dimension, as
            in RaBitQ, is too coarse.
        exact_below: If fewer documents than this can match, all of them are scored.
        codec: How token vectors are stored, see `token_codecs`.
        pooling: Reduces the stored token vectors by this factor, by averaging similar ones. Default: 1, keep all.
        folder: Where to keep added token vectors, in unnamed files. Default: in memory.

    Raises:
        InputError: A config of another width, or codes that faiss cannot train on so few documents.
        LoadError: faiss is not installed.
    """

    kind = "lemur"

    def __init__(
        self,
        dim: int,
        config: LemurConfig | None = None,
        *,
        codes: str = CODES,
        exact_below: int = EXACT_BELOW,
        codec: str = "float16",
        pooling: int = 1,
        folder: Path | None = None,
    ) -> None:
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder), exact_below)
        self.config = LemurConfig(dim) if config is None else config
        if self.config.dim != dim:
            raise InputError(f"config.dim is {self.config.dim}, the index has {dim}", field="config")
        faiss = import_faiss()
        empty = new_index(faiss, self.config.features, codes, "inner_product")
        check_rows(faiss, empty, codes, min(exact_below, TRAIN_DOCUMENTS))
        self.codes = codes
        self._encoder: LemurEncoder | None = None
        self._vectors: FaissIndex | None = None

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`.

        The features are learned once there are ``exact_below`` documents and do not change later; vectors of later
        documents are fitted to them.
        """
        first = len(self.store.table.rows)
        super().add(rows, documents)
        if self._encoder is not None:
            self._encode(np.arange(first, len(self.store.table.rows)))
        elif len(self) >= self.exact_below:
            self._train()

    def _train(self) -> None:
        positions = np.flatnonzero(self.store.table.alive)
        rng = np.random.default_rng(self.config.seed)
        sampled = np.sort(rng.choice(positions, min(TRAIN_DOCUMENTS, len(positions)), replace=False))
        sample = self.store.read(sampled)
        encoder = LemurEncoder.train(self.config, sample.vectors, sample.offsets)
        vectors = encoder.encode_documents(sample.vectors, sample.offsets)
        index = build_index(vectors, self.codes, "inner_product", rows=self.store.table.rows[sampled])
        self._encoder, self._vectors = encoder, index
        self._encode(np.setdiff1d(positions, sampled))

    def _encode(self, positions: np.ndarray) -> None:
        """Fit the vectors of the documents at ``positions`` and add them to the faiss index."""
        if self._encoder is None or self._vectors is None:
            raise RuntimeError("the index is not trained")
        for start in range(0, len(positions), ENCODE_BLOCK):
            block = positions[start : start + ENCODE_BLOCK]
            documents = self.store.read(block)
            vectors = self._encoder.encode_documents(documents.vectors, documents.offsets)
            self._vectors.add(self.store.table.rows[block], vectors)

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        super().remove(rows)
        if self._vectors is not None:
            self._vectors.remove(rows)

    def search(
        self,
        queries: TokenEmbeddings,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        candidates: int = CANDIDATES,
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
            tau: Merges query rows of at least this cosine for MaxSim (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF); vocabulary entries are looked up in the candidates.

        Raises:
            InputError: Another width, NaN, an empty query, numbers below 1.
        """
        check_count("candidates", candidates)
        encoder, index = self._encoder, self._vectors
        retrieve: Retrieve | None = None
        if encoder is not None and index is not None:

            def by_vectors(query: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
                rows, _ = index.search(encoder.encode_query(query, weights)[None], count, allowed).of(0)
                return self.store.find(rows)

            retrieve = by_vectors
        return self._search(queries, k, allowed, retrieve, candidates=candidates, tau=tau, feedback=feedback)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        fields: dict[str, Any] = {
            "tokens": self.store.fields(),
            "config": dataclasses.asdict(self.config),
            "codes": self.codes,
            "exact_below": self.exact_below,
            "encoder": None,
        }
        files = self.store.writers()
        if self._encoder is not None and self._vectors is not None:
            fields["encoder"] = self._encoder.describe()
            rows, alive = self._vectors.row_arrays()
            arrays = {**self._encoder.matrices, "coderows": rows, "codealive": alive}
            files |= {f"{name}.npy": array_writer(values) for name, values in arrays.items()}
            files["codes.faiss"] = self._vectors.write
        save_engine(directory, self.kind, fields, files, fingerprint)

    @classmethod
    def load(
        cls,
        directory: Path,
        fingerprint: str | None = None,
        *,
        config: LemurConfig | None = None,
        folder: Path | None = None,
    ) -> LemurIndex:
        """Return the index that `save` wrote; the errors are also those of `indexing.storage.engine_files.open_engine`.

        Args:
            directory: Where it was saved.
            fingerprint: Of the encoder of the queries. Default: not checked.
            config: The expected features. Default: not checked.
            folder: Where to keep vectors added later. Default: in memory.

        Raises:
            IndexMismatchError: The index has another config than ``config``, or its features differ from their digests;
                the message names the differences.
        """
        saved = open_engine(directory, cls.kind, fingerprint)
        fields = saved.fields
        if config is not None:
            check_same(fields["config"], dataclasses.asdict(config), "LEMUR config")
        index = cls(
            fields["tokens"]["dim"],
            LemurConfig(**fields["config"]),
            codes=fields["codes"],
            exact_below=fields["exact_below"],
            folder=folder,
        )
        index.store = TokenStore.from_saved(fields["tokens"], saved, folder)
        if fields["encoder"] is not None:
            index._load_vectors(fields["encoder"], saved)
        return index

    def _load_vectors(self, described: Mapping[str, Any], saved: SavedEngine) -> None:
        encoder = LemurEncoder.from_saved(described, saved.arrays(described["sha256"]))
        vectors = load_codes(saved, self.codes)
        check_codes(saved, vectors, self.store, encoder.size)
        self._encoder, self._vectors = encoder, vectors
