"""faiss indexes with an explicit metric, checked input and no -1 in results; the only module that imports faiss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError, LoadError
from indexing.base import Hits, Metric, as_metric, as_queries, as_vectors, make_hits, unit
from indexing.engines.exact import ROW_BLOCK, search_blocks
from indexing.engines.faiss_defaults import CANDIDATES, EF_SEARCH, REFINE, SCAN_BELOW, resolve_kind
from indexing.engines.faiss_factory import build_errors, check_rows, new_index, sample, training_rows
from indexing.engines.faiss_gpu import MAX_K, GpuCopy, build_cagra, check_device
from indexing.engines.faiss_parts import is_keyed, renumbers, search_parameters, supports_filter, supports_reconstruct
from indexing.storage.engine_files import ENGINE_REMEDY, array_writer, open_engine, save_engine
from indexing.storage.row_table import RowTable, as_rows, check_new

ADD_BLOCK = 8_192
TRAIN_ROWS = 262_144


def import_faiss() -> Any:
    """Return the faiss module, or raise `LoadError` with the install command."""
    try:
        import faiss
    except ImportError:
        raise LoadError(
            "faiss is not installed; `pip install -e '.[cpu]'` (or '.[gpu]' or '.[gpu-cuvs]', never two), "
            'or build the collection with index="exact"'
        ) from None
    return faiss


class FaissIndex:
    """A trained and filled faiss index; created by `build_index`.

    Not thread-safe: do not search an index while it is being modified. Concurrent searches are safe.

    Args:
        index: The faiss index, built for the inner product.
        kind: Its factory string.
        metric: ``cosine`` or ``inner_product``.
        table: The row at each of its positions. Default: row i at position i.
        device: Where searches without a filter run: ``cpu``, ``cuda`` or ``cuda:N`` (for the accuracy of scores see
            `faiss_gpu.GpuCopy`). Everything else runs on the CPU, which keeps the whole index.

    Raises:
        InputError: ``device`` is unknown, or does not support this kind of index.
        LoadError: faiss was built without GPU support, or there is no such GPU.
    """

    def __init__(
        self, index: Any, kind: str, metric: Metric, table: RowTable | None = None, *, device: str = "cpu"
    ) -> None:
        self._faiss = import_faiss()
        self._index = index
        self.kind = kind
        self.metric = metric
        self._table = RowTable(np.arange(index.ntotal, dtype=np.int64)) if table is None else table
        self._keyed, self._renumbers = is_keyed(self._faiss, index), renumbers(self._faiss, index)
        self._filters = supports_filter(self._faiss, index)
        self._reconstructs = supports_reconstruct(self._faiss, index)
        self._ordinal = check_device(self._faiss, device)
        self._copy_to_gpu()

    def _copy_to_gpu(self) -> None:
        on_gpu = self._ordinal >= 0
        self._gpu = GpuCopy(self._faiss, self._index, self.kind, self._ordinal) if on_gpu else None

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self._index.d)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def num_removed(self) -> int:
        """Removed rows that still occupy space: graphs and refined codes only hide them until a rebuild."""
        return 0 if self._keyed else self._table.num_removed

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors (n, d) float32 under the row numbers ``rows`` (n,); nothing is trained again.

        Raises:
            InputError: Another width, NaN, a row that exists or is given twice.
        """
        checked = as_vectors(vectors, self.dim)
        new = as_rows(rows, len(checked))
        check_new(self._table.ordered, new)
        if not len(new):
            return
        prepared = unit(checked) if self.metric == "cosine" else checked
        positions = np.arange(len(self._table.rows), len(self._table.rows) + len(new))
        with build_errors(self.kind, len(new)):
            if self._keyed:
                self._index.add_with_ids(prepared, positions)
            else:
                self._index.add(prepared)
        self._table.append(new)
        self._copy_to_gpu()

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing.

        If faiss cannot remove (graphs, refined codes), the rows are hidden from searches, see `num_removed`.
        """
        positions = self._table.find_known(rows)
        if not len(positions):
            return
        if self._renumbers or self._keyed:
            self._index.remove_ids(self._faiss.IDSelectorBatch(positions))
        if self._renumbers:
            self._table.delete(positions)
        else:
            self._table.mark_removed(positions)
        self._copy_to_gpu()

    def search(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        ef_search: int = EF_SEARCH,
        nprobe: int | None = None,
        refine: float | None = None,
        scan_below: int = SCAN_BELOW,
    ) -> Hits:
        """Return the best ``k`` rows of each query (Q, d).

        An approximate kind may miss rows and return fewer than ``k``. Equal scores are ordered by row, but which of
        the rows tied for the last hits are returned is up to faiss.

        Args:
            queries: (Q, d) float32.
            k: Hits per query, clipped to the number of rows.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored. Default: all.
            ef_search: Candidates that a search of an HNSW graph keeps; more raise recall and latency.
            nprobe: Lists that a search of an IVF reads; more raise recall and latency. Default: a quarter of them.
            refine: Candidates per hit that are scored with the stored vectors, if the kind has these. Default: 10, and
                at least 400 in all.
            scan_below: If a filter matches at most this many rows, they are scored exhaustively.
        """
        queries, k = as_queries(self, queries, k)
        mask = None if allowed is None else self._table.mask(allowed)
        if mask is None and self.num_removed:
            mask = self._table.alive
        count = len(self) if mask is None else int(np.count_nonzero(mask))
        k = min(k, count)
        if k == 0 or len(queries) == 0:
            return make_hits(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
        if mask is None and self._gpu is not None and k <= MAX_K:
            return self._hits(*self._gpu.search(queries, k, nprobe))
        few = allowed is not None and count <= scan_below
        if mask is not None and self._reconstructs and (few or not self._filters):
            return search_blocks(queries, k, self._blocks(mask))
        parameters = search_parameters(
            self._faiss,
            self._index,
            None if mask is None else self._faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")),
            ef_search=max(ef_search, k),
            nprobe=len(self._table.rows) if few else nprobe,  # every list
            refine=max(REFINE, CANDIDATES / k) if refine is None else refine,
        )
        return self._hits(*self._index.search(queries, k, params=parameters))

    def _hits(self, scores: np.ndarray, positions: np.ndarray) -> Hits:
        return make_hits(np.where(positions < 0, -1, self._table.rows[positions]), scores)

    def _blocks(self, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows (n,), ascending, and their vectors (n, d) as stored."""
        positions = np.flatnonzero(mask)
        positions = positions[np.argsort(self._table.rows[positions])]
        for start in range(0, len(positions), ROW_BLOCK):
            block = positions[start : start + ROW_BLOCK]
            yield self._table.rows[block], self._index.reconstruct_batch(block)

    def row_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row at each position of the faiss index, (n,) int64, and False for removed rows, (n,) bool.

        `load_index` needs them as a `RowTable`, with the file of `write`.
        """
        return self._table.rows, self._table.alive

    def write(self, path: Path) -> None:
        """Write only the faiss index to ``path``; raise `OSError` if that fails, for example on a full disk.

        Python writes the file: faiss's own writer ignores a failing close, which would leave a truncated file.
        """
        with path.open("wb") as file:
            try:
                self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(file.write))
            except RuntimeError as error:
                raise OSError(f"cannot write {path}: {error}") from None

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write index and rows to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        rows, alive = map(array_writer, self.row_arrays())
        files = {"index.faiss": self.write, "rows.npy": rows, "alive.npy": alive}
        save_engine(directory, "faiss", {"kind": self.kind, "metric": self.metric}, files, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None, *, device: str = "cpu") -> FaissIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        saved = open_engine(directory, "faiss", fingerprint)
        table = RowTable(*saved.arrays(("rows", "alive")).values())
        kind, metric = saved.fields["kind"], saved.fields["metric"]
        return load_index(saved.files["index.faiss"], kind, metric, table, device=device)


def build_index(
    vectors: np.ndarray,
    kind: str = "auto",
    metric: Metric = "cosine",
    *,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> FaissIndex:
    """Return a faiss index of ``vectors``.

    Args:
        vectors: (N, d) float32, a memory map or an array; read in blocks.
        kind: ``auto``, ``flat``, ``ivf``, ``hnsw`` or a faiss factory string; ``cagra`` with a GPU and cuVS.
        metric: ``cosine`` normalises every vector; ``inner_product`` does not.
        rows: (N,) int64, the row number of each vector; Default: 0 to N - 1.
        device: ``cpu``, ``cuda`` or ``cuda:N``, see `FaissIndex`.
        progress: Called with the rows added and the total.

    Raises:
        InputError: No rows, too few to train on, NaN, or an unknown kind or device.
        LoadError: ``device`` requires another build of faiss; the error names the extra to install.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(
            f"vectors must be an array (N, d) with N at least 1, got shape {vectors.shape}", field="vectors"
        )
    metric = as_metric(metric)
    table = None if rows is None else RowTable(as_rows(rows, len(vectors)))
    faiss = import_faiss()
    ordinal = check_device(faiss, device, kind)

    def prepare(block: np.ndarray) -> np.ndarray:
        checked = as_vectors(block)
        return unit(checked) if metric == "cosine" else checked

    if kind == "cagra":
        with build_errors(kind, len(vectors)):
            return FaissIndex(build_cagra(faiss, prepare(vectors), ordinal), kind, metric, table, device=device)
    kind = resolve_kind(kind, len(vectors), vectors.shape[1], device)
    index = new_index(faiss, vectors.shape[1], kind, metric)
    check_rows(faiss, index, kind, len(vectors))
    if not index.is_trained:
        with build_errors(kind, len(vectors)):
            index.train(prepare(sample(vectors, max(TRAIN_ROWS, training_rows(faiss, index)))))
    for start in range(0, len(vectors), ADD_BLOCK):
        with build_errors(kind, len(vectors)):
            index.add(prepare(vectors[start : start + ADD_BLOCK]))
        if progress is not None:
            progress(min(start + ADD_BLOCK, len(vectors)), len(vectors))
    return FaissIndex(index, kind, metric, table, device=device)


def load_index(
    path: Path, kind: str, metric: Metric, table: RowTable | None = None, *, device: str = "cpu"
) -> FaissIndex:
    """Return the index that `FaissIndex.write` wrote.

    The digest of ``path`` must have been verified before: faiss does not validate what it reads.

    Raises:
        CorruptFileError: faiss cannot read the file, or it contradicts ``table``.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError):
        message = f"{path} is not an index that faiss {faiss.__version__} can read"
        raise CorruptFileError(f"{message}; {ENGINE_REMEDY}") from None
    if table is not None and int(index.ntotal) != len(table if is_keyed(faiss, index) else table.rows):
        raise CorruptFileError(f"{path} has {index.ntotal} vectors for {len(table.rows)} rows; {ENGINE_REMEDY}")
    return FaissIndex(index, kind, as_metric(metric), table, device=device)
