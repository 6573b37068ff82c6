"""PLAID: token vectors searched through the centroids they lie near, in two stages.

1. fast-plaid, the engine under PyLate, gives some hundreds of documents: those with tokens at the centroids nearest to
   the query's, ranked by what it keeps of a token, which is the number of a centroid and some bits for each dimension,
2. exact MaxSim with the token vectors ranks those.

Santhanam et al. 2022, arXiv 2205.09707; the second stage is not in the paper. fast-plaid is called without PyLate,
whose own index keeps the names of documents in a database beside it; ours are row numbers. Needs `embedserve[pylate]`,
which has an environment of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits
from indexing.late_interaction.multi_index import Feedback, MultiIndex, Ranked, check_count
from indexing.late_interaction.plaid_codes import PlaidCodes, as_tensors, import_fast_plaid
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.engine_files import ENGINE_REMEDY, Opened, array_writer, open_engine, read_array, save_engine

EXACT_BELOW = 10_000  # documents that may be found; below, all of them are compared
LEAST = 64  # documents that fast-plaid learns from
CANDIDATES = 256  # the paper's for 100 hits
SCANNED = 4  # times as many are ranked by their centroids; fast-plaid ranks the best quarter of them by all its codes
PROBES = 8
BITS = (1, 2, 4, 8)
READ_BLOCK = 1_024


class PlaidIndex(MultiIndex):
    """Finds documents by PLAID and ranks them by exact MaxSim; see the module's two stages.

    With fewer than ``exact_below`` documents there are no centroids, and every document is compared.

    Args:
        dim: Numbers in a token vector, a multiple of 8.
        bits: That fast-plaid keeps of each of them: 1, 2, 4 or 8.
        exact_below: So many documents that may be found are simply all compared; at least 64.
        codec: How token vectors are kept, see `token_codecs`; what fast-plaid keeps comes on top.
        pooling: Keep means of so many like tokens; 1 keeps all.
        folder: Where to keep what is added, in files that go with the index; None keeps token vectors in memory, and
            fast-plaid's files where the system keeps temporary ones.

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
        super().__init__(TokenStore(dim, codec, pooling=pooling, folder=folder))
        if dim % 8:
            raise InputError(f"PLAID takes token vectors of a multiple of 8 numbers, got {dim}", field="dim")
        if bits not in BITS:
            raise InputError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}", field="bits")
        check_count("exact_below", exact_below)
        if exact_below < LEAST:
            message = f"exact_below must be at least {LEAST}, got {exact_below}: PLAID learns from so many documents"
            raise InputError(message, field="exact_below")
        import_fast_plaid()
        self.bits, self.exact_below = bits, exact_below
        self._folder = folder
        self._codes: PlaidCodes | None = None

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`.

        Centroids are learnt once there are enough documents; later documents only add to them.
        """
        first = len(self.store.table.rows)
        super().add(rows, documents)
        if self._codes is not None:
            self._encode(self._codes, np.arange(first, len(self.store.table.rows)))
        elif len(self) >= self.exact_below:
            codes = PlaidCodes(self.bits, self._folder)
            self._encode(codes, np.flatnonzero(self.store.table.alive))
            self._codes = codes

    def _encode(self, codes: PlaidCodes, places: np.ndarray) -> None:
        tensors = []
        for start in range(0, len(places), READ_BLOCK):
            block = self.store.read(places[start : start + READ_BLOCK])
            tensors += as_tensors(block.vectors, block.offsets)
        if tensors:
            codes.add(self.store.table.rows[places], tensors)

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
        super().remove(rows)
        if self._codes is not None and not len(self):
            self._codes = None  # whoever comes next is learnt from
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
        """Return the best ``k`` documents that the stages find for each query; the scores are exact MaxSim.

        Args:
            queries: Q of them.
            k: Hits for each, clipped to the number of documents; fewer where fewer have tokens at the centroids.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over. Where fewer
                than ``exact_below`` remain all of them are compared.
            candidates: Documents that are compared by MaxSim, at least ``k`` of them.
            scanned: Documents that fast-plaid ranks by their centroids, at least four times as many, which they are if
                left out. The best quarter of them is ranked by all its codes, which takes most of the time.
            probes: Centroids nearest to each row of a query whose documents are looked at.
            tau: Joins query rows of at least this cosine for MaxSim (`ball_carving.carve`): faster, no longer exact.
            feedback: Expands the queries (ColBERT-PRF); words are looked up in the candidates.

        Raises:
            InputError: Another width, NaN, an empty query, numbers below 1.
        """
        for name, value in (("candidates", candidates), ("scanned", scanned), ("probes", probes)):
            if value is not None:
                check_count(name, value)
        places = self._places(allowed)

        def rank(query: np.ndarray, weights: np.ndarray | None, k: int) -> Ranked:
            found = places
            if self._codes is not None and len(places) >= self.exact_below:
                weighted = query if weights is None else query * np.asarray(weights, dtype=np.float32)[:, None]
                kept = max(candidates, k)
                seen = max(scanned or 0, SCANNED * kept)
                found = self.store.find(self._codes.find(weighted, kept, seen, probes, allowed))
            return self._exact(query, weights, k, found, tau)

        return self._search_each(queries, k, rank, feedback, candidates)

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
            fingerprint: Of the encoder that will ask; None asks nobody.
            folder: Where to keep what is added from now on, and the files that fast-plaid works in.

        Raises:
            LoadError: fast-plaid cannot be used here.
        """
        opened = open_engine(directory, cls.kind, fingerprint)
        fields = opened.fields
        index = cls(fields["tokens"]["dim"], bits=fields["bits"], exact_below=fields["exact_below"], folder=folder)
        index.store = TokenStore.from_opened(fields["tokens"], opened, folder)
        if fields["encoded"]:
            index._open_codes(opened)
        return index

    def _open_codes(self, opened: Opened) -> None:
        rows = read_array(opened.files["coderows.npy"])
        self._codes = PlaidCodes(self.bits, self._folder, archive=opened.files["plaid.zip"], rows=rows)
        if not np.array_equal(self._codes.table.ordered, self.store.table.ordered):
            path = opened.files["plaid.zip"].parent
            raise CorruptFileError(f"{path} holds codes of other documents than its tokens; {ENGINE_REMEDY}")
