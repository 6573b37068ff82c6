"""PLAID: retrieves candidates through the centroids nearest to query tokens, then ranks them by exact MaxSim.

1. fast-plaid, the engine of PyLate, retrieves documents with tokens at the centroids nearest to the query's, and ranks
   them by its codes: the centroid of each token and some bits per dimension.
2. Exact MaxSim with the token vectors ranks the candidates.

Santhanam et al. 2022, arXiv 2205.09707; the second stage is not in the paper. fast-plaid is called without PyLate,
whose own index needs a database of document names. Requires `embedserve[pylate]`, in an environment of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.late_interaction.multi_index import EXACT_BELOW, Feedback, MultiIndex, Retrieve, check_count
from indexing.late_interaction.plaid_codes import PlaidCodes, as_tensors, import_fast_plaid
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import ENGINE_REMEDY, SavedEngine, array_writer, open_engine, read_array, save_engine

MIN_DOCUMENTS = 64  # fast-plaid trains on at least this many
CANDIDATES = 256  # the paper's for 100 hits
SCAN_FACTOR = 4  # documents ranked by centroids per candidate; fast-plaid ranks the best quarter by all codes
PROBES = 8
BITS = (1, 2, 4, 8)
READ_BLOCK = 1_024


class PlaidIndex(MultiIndex):
    """Retrieves documents by PLAID and ranks them by exact MaxSim; see the module docstring.

    With fewer than ``exact_below`` documents there are no centroids, and every document is scored.

    Args:
        dim: Dimensions of a token vector, a multiple of 8.
        bits: Bits per dimension of fast-plaid's codes: 1, 2, 4 or 8.
        exact_below: If fewer documents than this can match, all of them are scored; at least 64.
        codec: How token vectors are stored, see `token_codecs`, in addition to fast-plaid's codes.
        pooling: Reduces the stored token vectors by this factor, by averaging similar ones. Default: 1, keep all.
        folder: Where to keep added vectors, in temporary files. Default: token vectors in memory, fast-plaid's files in
            the system's temporary folder.

    Raises:
        InputError: Another ``dim``, ``bits`` or ``exact_below``.
        LoadError: fast-plaid is not installed, or was compiled for another torch.
    """

    kind = "plaid"

    def __init__(
        self,
        dim: int,
        *,
        bits: int = 4,
        exact_below: int = EXACT_BELOW,
        codec: str = "float16",
        pooling: int = 1,
        folder: Path | None = None,
    ) -> None:
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder), exact_below)
        if dim % 8:
            raise InputError(f"PLAID needs token vectors whose dimensions are a multiple of 8, got {dim}", field="dim")
        if bits not in BITS:
            raise InputError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}", field="bits")
        if exact_below < MIN_DOCUMENTS:
            message = f"exact_below must be at least {MIN_DOCUMENTS}, which PLAID trains on, got {exact_below}"
            raise InputError(message, field="exact_below")
        import_fast_plaid()
        self.bits = bits
        self._folder = folder
        self._codes: PlaidCodes | None = None

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`.

        Centroids are trained once there are ``exact_below`` documents; later documents can only add centroids.
        """
        first = len(self.store.table.rows)
        super().add(rows, documents)
        if self._codes is not None:
            self._encode(self._codes, np.arange(first, len(self.store.table.rows)))
        elif len(self) >= self.exact_below:
            codes = PlaidCodes(self.bits, self._folder)
            self._encode(codes, np.flatnonzero(self.store.table.alive))
            self._codes = codes

    def _encode(self, codes: PlaidCodes, positions: np.ndarray) -> None:
        tensors = []
        for start in range(0, len(positions), READ_BLOCK):
            block = self.store.read(positions[start : start + READ_BLOCK])
            tensors += as_tensors(block.vectors, block.offsets)
        if tensors:
            codes.add(self.store.table.rows[positions], tensors)

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        super().remove(rows)
        if self._codes is not None and not len(self):
            self._codes = None  # trained again on the next documents
        elif self._codes is not None and len(rows):
            self._codes.remove(rows)

    def search(
        self,
        queries: TokenEmbeddings,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        candidates: int = CANDIDATES,
        scanned: int | None = None,
        probes: int = PROBES,
        tau: float | None = None,
        feedback: Feedback | None = None,
    ) -> Hits:
        """Return the best ``k`` candidates of each query; the scores are exact MaxSim.

        Args:
            queries: Q queries.
            k: Hits per query, clipped to the number of documents; fewer if fewer have tokens at the centroids.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored. If fewer than ``exact_below``
                remain, all of them are scored. Default: all.
            candidates: Documents scored by MaxSim, at least ``k``.
            scanned: Documents that fast-plaid ranks by centroids, at least four times as many. The best quarter is
                ranked by all codes, which takes most of the time. Default: four times as many.
            probes: Nearest centroids per query row whose documents are read.
            tau: Merges query rows of at least this cosine for MaxSim (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF); vocabulary entries are looked up in the candidates.

        Raises:
            InputError: Another width, NaN, an empty query, numbers below 1.
        """
        for name, value in (("candidates", candidates), ("scanned", scanned), ("probes", probes)):
            check_count(name, value)
        codes = self._codes
        retrieve: Retrieve | None = None
        if codes is not None:

            def by_codes(query: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
                weighted = query if weights is None else query * np.asarray(weights, dtype=np.float32)[:, None]
                rows = codes.find(weighted, count, max(scanned or 0, SCAN_FACTOR * count), probes, allowed)
                return self.store.find(rows)

            retrieve = by_codes
        return self._search(queries, k, allowed, retrieve, candidates=candidates, tau=tau, feedback=feedback)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        fields: dict[str, Any] = {
            "tokens": self.store.fields(),
            "bits": self.bits,
            "exact_below": self.exact_below,
            "encoded": self._codes is not None,
        }
        files = self.store.writers()
        if self._codes is not None:
            files |= {"coderows.npy": array_writer(self._codes.table.rows), "plaid.zip": self._codes.write}
        save_engine(directory, self.kind, fields, files, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None, *, folder: Path | None = None) -> PlaidIndex:
        """Return the index that `save` wrote; the errors are also those of `indexing.storage.engine_files.open_engine`.

        Args:
            directory: Where it was saved.
            fingerprint: Of the encoder of the queries. Default: not checked.
            folder: Where to keep vectors added later, and fast-plaid's files.

        Raises:
            LoadError: fast-plaid cannot be used here.
        """
        saved = open_engine(directory, cls.kind, fingerprint)
        fields = saved.fields
        index = cls(fields["tokens"]["dim"], bits=fields["bits"], exact_below=fields["exact_below"], folder=folder)
        index.store = TokenStore.from_saved(fields["tokens"], saved, folder)
        if fields["encoded"]:
            index._load_codes(saved)
        return index

    def _load_codes(self, saved: SavedEngine) -> None:
        rows = read_array(saved.files["coderows.npy"])
        self._codes = PlaidCodes(self.bits, self._folder, archive=saved.files["plaid.zip"], rows=rows)
        if not np.array_equal(self._codes.table.ordered, self.store.table.ordered):
            path = saved.files["plaid.zip"].parent
            raise CorruptFileError(f"{path} holds codes of other documents than its tokens; {ENGINE_REMEDY}")
