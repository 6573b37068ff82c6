"""LEMUR: token vectors searched through one learnt vector for each document, in two stages.

1. A faiss index over the documents' vectors (`indexing.late_interaction.lemur_encoder`) gives some hundreds by inner
product,
2. exact MaxSim with the token vectors ranks those.

Jääsaari, Hyvönen and Roos 2026, arXiv 2601.21853. Unlike MUVERA's encodings (`indexing.late_interaction.muvera`) the
vectors are learnt
from the corpus: they are shorter, take longer to make, and suit what is like the documents that were there when the
index was first large enough. Build it anew where later ones differ.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.engines.faiss_factory import check_rows, new_index
from indexing.engines.faiss_index import FaissIndex, build_index, import_faiss, load_index
from indexing.late_interaction.lemur_encoder import ENCODE_BLOCK, LemurEncoder, check_described
from indexing.late_interaction.lemur_features import LemurConfig
from indexing.late_interaction.multi_index import Feedback, MultiIndex, Ranked, check_count
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import ENGINE_REMEDY, Opened, array_writer, open_engine, read_array, save_engine
from indexing.storage.row_table import RowTable

EXACT_BELOW = 10_000  # documents that may be found; below, all of them are compared
CANDIDATES = 400
CODES = "SQ8"
TRAIN_DOCUMENTS = 4_096  # read for training: 200 MiB of 100 tokens of 128 float32


class LemurIndex(MultiIndex):
    """Finds documents by learnt vectors and ranks them by exact MaxSim; see the module's two stages.

    With fewer than ``exact_below`` documents nothing is learnt, and every document is compared.

    Args:
        dim: Numbers in a token vector.
        config: What is learnt; `LemurConfig` of ``dim`` if left out.
        codes: The faiss factory string of the documents' vectors, such as SQ8, SQ4 or Flat. One bit for a number, as
            RaBitQ keeps, loses what tells documents apart.
        exact_below: So many documents that may be found are simply all compared.
        codec: How token vectors are kept, see `token_codecs`.
        pooling: Keep means of so many like tokens; 1 keeps all.
        folder: Where to keep the token vectors that are added, in files without names; None keeps them in memory.

    Raises:
        InputError: A config of another width, or codes that faiss cannot build of so many documents.
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
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder))
        self.config = LemurConfig(dim) if config is None else config
        if self.config.dim != dim:
            raise InputError(f"config.dim is {self.config.dim}, the index has {dim}", field="config")
        check_count("exact_below", exact_below)
        faiss = import_faiss()
        empty = new_index(faiss, self.config.features, codes, "inner_product")
        check_rows(faiss, empty, codes, min(exact_below, TRAIN_DOCUMENTS))
        self.codes, self.exact_below = codes, exact_below
        self._encoder: LemurEncoder | None = None
        self._vectors: FaissIndex | None = None

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`.

        The features are learnt once there are enough documents and stay so; later ones are fitted to them.
        """
        first = len(self.store.table.rows)
        super().add(rows, documents)
        if self._encoder is not None:
            self._encode(np.arange(first, len(self.store.table.rows)))
        elif len(self) >= self.exact_below:
            self._train()

    def _train(self) -> None:
        places = np.flatnonzero(self.store.table.alive)
        rng = np.random.default_rng(self.config.seed)
        chosen = np.sort(rng.choice(places, min(TRAIN_DOCUMENTS, len(places)), replace=False))
        sample = self.store.read(chosen)
        encoder = LemurEncoder.train(self.config, sample.vectors, sample.offsets)
        vectors = encoder.encode_documents(sample.vectors, sample.offsets)
        index = build_index(vectors, self.codes, "inner_product", rows=self.store.table.rows[chosen])
        self._encoder, self._vectors = encoder, index
        self._encode(np.setdiff1d(places, chosen))

    def _encode(self, places: np.ndarray) -> None:
        """Fit the documents at ``places`` and put their vectors into the faiss index."""
        if self._encoder is None or self._vectors is None:
            raise RuntimeError("nothing was learnt yet")
        for start in range(0, len(places), ENCODE_BLOCK):
            block = places[start : start + ENCODE_BLOCK]
            documents = self.store.read(block)
            vectors = self._encoder.encode_documents(documents.vectors, documents.offsets)
            self._vectors.add(self.store.table.rows[block], vectors)

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
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
        """Return the best ``k`` documents that the stages find for each query; the scores are exact MaxSim.

        Args:
            queries: Q of them.
            k: Hits for each, clipped to the number of documents.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over. Where fewer
                than ``exact_below`` remain all of them are compared.
            candidates: Documents that are compared by MaxSim, at least ``k`` of them.
            tau: Joins query rows of at least this cosine for MaxSim (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF); words are looked up in the candidates.

        Raises:
            InputError: Another width, NaN, an empty query, numbers below 1.
        """
        check_count("candidates", candidates)
        places = self._places(allowed)

        def rank(query: np.ndarray, weights: np.ndarray | None, k: int) -> Ranked:
            found = places
            if self._encoder is not None and self._vectors is not None and len(places) >= self.exact_below:
                vector = self._encoder.encode_query(query, weights)
                rows, _ = self._vectors.search(vector[None], max(candidates, k), allowed).of(0)
                found = self.store.find(rows)
            return self._exact(query, weights, k, found, tau)

        return self._search_each(queries, k, rank, feedback, candidates)

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
            fingerprint: Of the encoder that will ask; None asks nobody.
            config: What was to be learnt; None takes what is there.
            folder: Where to keep what is added from now on.

        Raises:
            IndexMismatchError: Another config than ``config``, or other features than were saved with the vectors; the
                message names what differs.
        """
        opened = open_engine(directory, cls.kind, fingerprint)
        fields = opened.fields
        if config is not None:
            check_described(fields["config"], dataclasses.asdict(config))
        index = cls(
            fields["tokens"]["dim"],
            LemurConfig(**fields["config"]),
            codes=fields["codes"],
            exact_below=fields["exact_below"],
            folder=folder,
        )
        index.store = TokenStore.from_opened(fields["tokens"], opened, folder)
        if fields["encoder"] is not None:
            index._open_vectors(fields["encoder"], opened)
        return index

    def _open_vectors(self, described: dict[str, Any], opened: Opened) -> None:
        matrices = {name: read_array(opened.files[f"{name}.npy"]) for name in described["sha256"]}
        encoder = LemurEncoder.from_saved(described, matrices)
        table = RowTable(*(read_array(opened.files[f"{name}.npy"]) for name in ("coderows", "codealive")))
        vectors = load_index(opened.files["codes.faiss"], self.codes, "inner_product", table)
        if not np.array_equal(table.ordered, self.store.table.ordered) or vectors.dim != encoder.size:
            path = opened.files["codes.faiss"].parent
            raise CorruptFileError(f"{path} holds vectors of other documents than its tokens; {ENGINE_REMEDY}")
        self._encoder, self._vectors = encoder, vectors
