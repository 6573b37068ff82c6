"""MUVERA: token vectors searched through one vector for each document, in two or three stages.

1. A faiss index over compressed fixed dimensional encodings (`indexing.late_interaction.fde`) gives some hundreds of
documents,
2. where the codes are too coarse for that it gives some thousands, of which whole encodings, kept as float16, leave
   some hundreds,
3. exact MaxSim with the token vectors ranks those.

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
from indexing.late_interaction.fde_config import FdeConfig, check_same, describe
from indexing.late_interaction.fde_index import TRAIN_DOCUMENTS, FdeIndex
from indexing.late_interaction.multi_index import Feedback, MultiIndex, Ranked, check_count
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import open_engine, save_engine

EXACT_BELOW = 10_000  # documents that may be found; below, all of them are compared
CANDIDATES = 400
SCANNED = 4  # times as many come out of the first stage where encodings are kept
CODES = "auto"
LEARNABLE = 39 * 16  # encodings that codes of 4 bits are learnt from; of fewer faiss warns


def default_config(dim: int) -> FdeConfig:
    """Return the encoding of 20 · 2^6 · 8 = 10,240 numbers; narrower tokens get fewer.

    On tokens of nano's ColBERT more and smaller partitions found more than the paper's 20 · 2^5 · 16, and far more so
    with empty ones left empty. Orthonormal projections found as much as any other, a centred encoding less.
    """
    return FdeConfig(dim, bits=6, inner_dim=min(8, dim), fill=False)


def default_codes(size: int, count: int) -> str:
    """Return 4 bits for every four of ``size`` numbers, in one list that faiss can filter.

    One byte for each number where ``count`` encodings are too few to learn those from, or ``size`` has no fours.
    """
    return f"IVF1,PQ{size // 4}x4fs" if size % 4 == 0 and count >= LEARNABLE else "SQ8"


class MuveraIndex(MultiIndex):
    """Finds documents by fixed dimensional encodings and ranks them by exact MaxSim; see the module's stages.

    With fewer than ``exact_below`` documents there are no encodings, and every document is compared.

    Args:
        dim: Numbers in a token vector.
        config: The encoding; `default_config` if left out.
        codes: The faiss factory string of the first stage, such as SQ8, RaBitQ, HNSW32 or Flat; ``auto`` takes
            `default_codes`. One bit for a number, as RaBitQ keeps, needs an encoding with ``fill``.
        keeps_encodings: Whether to keep float16 encodings for the second stage: 2 · F bytes for each document.
        exact_below: So many documents that may be found are simply all compared.
        codec: How token vectors are kept, see `token_codecs`.
        pooling: Keep means of so many like tokens; 1 keeps all.
        folder: Where to keep what is added, in files without names; None keeps it in memory.

    Raises:
        InputError: A config of another width, or codes that faiss cannot build of so many documents.
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
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder))
        self.config = default_config(dim) if config is None else config
        if self.config.dim != dim:
            raise InputError(f"config.dim is {self.config.dim}, the index has {dim}", field="config")
        check_count("exact_below", exact_below)
        codes = default_codes(self.config.size, exact_below) if codes == CODES else codes
        faiss = import_faiss()
        empty = new_index(faiss, self.config.size, codes, "inner_product")
        check_rows(faiss, empty, codes, min(exact_below, TRAIN_DOCUMENTS))
        self.codes, self.keeps_encodings, self.exact_below = codes, keeps_encodings, exact_below
        self._folder = folder
        self._encoded: FdeIndex | None = None

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`.

        The encodings are made once there are enough documents; centring and codes learn from those and stay so.
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
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
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
        """Return the best ``k`` documents that the stages find for each query; the scores are exact MaxSim.

        Args:
            queries: Q of them.
            k: Hits for each, clipped to the number of documents.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over. Where fewer
                than ``exact_below`` remain all of them are compared.
            candidates: Documents that are compared by MaxSim, at least ``k`` of them.
            scanned: Documents that the first stage hands over where encodings are kept, at least ``candidates``; four
                times as many if left out.
            tau: Joins query rows of at least this cosine for MaxSim (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF); words are looked up in the candidates.

        Raises:
            InputError: Another width, NaN, an empty query, numbers below 1.
        """
        for name, value in (("candidates", candidates), ("scanned", scanned)):
            if value is not None:
                check_count(name, value)
        places = self._places(allowed)

        def rank(query: np.ndarray, weights: np.ndarray | None, k: int) -> Ranked:
            found = places
            if self._encoded is not None and len(places) >= self.exact_below:
                kept = max(candidates, k)
                found = self._encoded.find(query, weights, kept, max(scanned or SCANNED * kept, kept), allowed)
            return self._exact(query, weights, k, found, tau)

        return self._search_each(queries, k, rank, feedback, candidates)

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
            fingerprint: Of the encoder that will ask; None asks nobody.
            config: The encoding that is expected; None takes what is there.
            folder: Where to keep what is added from now on.

        Raises:
            IndexMismatchError: Another encoding than ``config``; the message names what differs.
        """
        opened = open_engine(directory, cls.kind, fingerprint)
        fields = opened.fields
        if config is not None:
            check_same({"config": fields["config"], "sha256": {}}, describe(config, {}))
        index = cls(
            fields["tokens"]["dim"],
            FdeConfig(**fields["config"]),
            codes=fields["codes"],
            keeps_encodings=fields["keeps_encodings"],
            exact_below=fields["exact_below"],
            folder=folder,
        )
        index.store = TokenStore.from_opened(fields["tokens"], opened, folder)
        if fields["encoder"] is not None:
            index._encoded = FdeIndex.from_opened(index.store, fields["encoder"], index.codes, opened, folder)
        return index
