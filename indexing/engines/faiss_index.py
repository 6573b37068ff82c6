"""FAISS behind our own promises: a stated metric, checked input, no -1; the only file that imports faiss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError, LoadError
from indexing.base import Hits, Metric, as_metric, as_queries, as_vectors, make_hits, unit
from indexing.engines.exact import ROW_BLOCK, search_blocks
from indexing.engines.faiss_defaults import CANDIDATES, EF_SEARCH, REFINE, SCAN_BELOW, resolve_kind
from indexing.engines.faiss_factory import check_rows, new_index, refusals, rows_to_train, sample
from indexing.engines.faiss_gpu import MAX_K, GpuCopy, build_cagra, check_device
from indexing.engines.faiss_parts import closes_up, gives_vectors, is_keyed, search_parameters, takes_selector
from indexing.storage.engine_files import ENGINE_REMEDY, array_writer, open_engine, read_array, save_engine
from indexing.storage.row_table import RowTable, as_rows, check_new

ADD_BLOCK = 8_192
TRAIN_ROWS = 262_144


def import_faiss() -> Any:
    """Return the faiss module, or raise `LoadError` saying how to install it."""
    try:
        import faiss
    except ImportError:
        raise LoadError(
            "faiss is not installed; `pip install -e '.[cpu]'` (or '.[gpu]' or '.[gpu-cuvs]', never two), "
            'or build the collection with index="exact"'
        ) from None
    return faiss


class FaissIndex:
    """A trained and filled faiss index. Make one with `build_index`.

    Safe to search from many threads, as long as nobody adds or removes.

    Args:
        index: The faiss index, built for the inner product.
        kind: The factory string it was made by.
        metric: ``cosine`` or ``inner_product``.
        table: The row at each of its places; row i at place i if left out.
        device: Where searches without a filter run: ``cpu``, ``cuda`` or ``cuda:N`` (see `faiss_gpu.GpuCopy` for how
            near the scores are). All else runs on the CPU, which keeps the whole index.

    Raises:
        InputError: ``device`` is unknown, or has no such index.
        LoadError: faiss has no GPU code, or sees no such GPU.
    """

    def __init__(
        self, index: Any, kind: str, metric: Metric, table: RowTable | None = None, *, device: str = "cpu"
    ) -> None:
        self._faiss = import_faiss()
        self._index = index
        self.kind = kind
        self.metric = metric
        self._table = RowTable(np.arange(index.ntotal, dtype=np.int64)) if table is None else table
        self._keyed, self._closes_up = is_keyed(self._faiss, index), closes_up(self._faiss, index)
        self._selects, self._gives = takes_selector(self._faiss, index), gives_vectors(self._faiss, index)
        self._ordinal = check_device(self._faiss, device)
        self._copy_to_gpu()

    def _copy_to_gpu(self) -> None:
        on_gpu = self._ordinal >= 0
        self._gpu = GpuCopy(self._faiss, self._index, self.kind, self._ordinal) if on_gpu else None

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._index.d)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def buried(self) -> int:
        """How many removed rows still take room and time: a graph and refined codes hide them, a rebuild frees them."""
        return 0 if self._keyed else len(self._table.rows) - len(self._table)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors (n, d) float32 under the row numbers ``rows`` (n,); what was trained stays as it is.

        Raises:
            InputError: Another width, NaN, a row that is there already or given twice.
        """
        checked = as_vectors(vectors, self.dim)
        new = as_rows(rows, len(checked))
        check_new(self._table.ordered, new)
        if not len(new):
            return
        ready = unit(checked) if self.metric == "cosine" else checked
        places = np.arange(len(self._table.rows), len(self._table.rows) + len(new))
        with refusals(self.kind, len(new)):
            if self._keyed:
                self._index.add_with_ids(ready, places)
            else:
                self._index.add(ready)
        self._table.append(new)
        self._copy_to_gpu()

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was.

        Where faiss cannot remove (graphs, refined codes) the rows are hidden from every search, see `buried`.
        """
        places = self._table.find_known(rows)
        if not len(places):
            return
        if self._closes_up or self._keyed:
            self._index.remove_ids(self._faiss.IDSelectorBatch(places))
        if self._closes_up:
            self._table.close_up(places)
        else:
            self._table.bury(places)
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

        An approximate kind may miss rows, and may find fewer than ``k``; rows with equal scores are ordered by
        row, but which of them take the last places is faiss's choice. Where a filter lets through at most
        ``scan_below`` rows, all of them are compared and none is missed.

        Args:
            queries: (Q, d) float32.
            k: Hits for each query, clipped to the number of rows.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over.
            ef_search: Candidates an HNSW graph keeps while searching; more is slower and finds more.
            nprobe: Lists that an IVF reads, a quarter of them if left out; more is slower and finds more.
            refine: Candidates for each hit that are compared with the stored vectors, where the kind has such; 10, and
                at least 400 in all, if left out.
            scan_below: So few rows that a filter lets through are compared one and all.
        """
        queries, k = as_queries(self, queries, k)
        mask = None if allowed is None else self._table.mask(allowed)
        if mask is None and self.buried:
            mask = self._table.alive
        count = len(self) if mask is None else int(np.count_nonzero(mask))
        k = min(k, count)
        if k == 0 or len(queries) == 0:
            return make_hits(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
        if mask is None and self._gpu is not None and k <= MAX_K:
            return self._hits(*self._gpu.search(queries, k, nprobe))
        few = allowed is not None and count <= scan_below
        if mask is not None and self._gives and (few or not self._selects):
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

    def _hits(self, scores: np.ndarray, places: np.ndarray) -> Hits:
        return make_hits(np.where(places < 0, -1, self._table.rows[places]), scores)

    def _blocks(self, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows (n,), ascending, and their vectors (n, d) as the index keeps them."""
        places = np.flatnonzero(mask)
        places = places[np.argsort(self._table.rows[places])]
        for start in range(0, len(places), ROW_BLOCK):
            block = places[start : start + ROW_BLOCK]
            yield self._table.rows[block], self._index.reconstruct_batch(block)

    def row_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row at each place of the faiss index, (n,) int64, and whether it is still there, (n,) bool.

        They make the `RowTable` that `load_index` takes with the file of `write`.
        """
        return self._table.rows, self._table.alive

    def write(self, path: Path) -> None:
        """Write the faiss index alone to ``path``; raise `OSError` where that fails, a full disk included.

        The file is Python's: faiss's own writer prints a failing close and goes on, leaving the file cut short.
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
        opened = open_engine(directory, "faiss", fingerprint)
        table = RowTable(read_array(opened.files["rows.npy"]), read_array(opened.files["alive.npy"]))
        fields = opened.fields
        return load_index(opened.files["index.faiss"], fields["kind"], fields["metric"], table, device=device)


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
        metric: ``cosine`` scales every vector to unit length; ``inner_product`` takes them as they are.
        rows: (N,) int64, the row number of each vector; 0 to N - 1 if left out.
        device: ``cpu``, ``cuda`` or ``cuda:N``, see `FaissIndex`.
        progress: Called with rows added and rows in all.

    Raises:
        InputError: No rows, too few to train on, not finite, or an unknown kind or device.
        LoadError: ``device`` needs another build of faiss; the error names the extra to install.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(
            f"vectors must be an array (N, d) with N at least 1, got shape {vectors.shape}", field="vectors"
        )
    metric = as_metric(metric)
    table = None if rows is None else RowTable(as_rows(rows, len(vectors)))
    faiss = import_faiss()
    ordinal = check_device(faiss, device, kind)

    def ready(block: np.ndarray) -> np.ndarray:
        checked = as_vectors(block)
        return unit(checked) if metric == "cosine" else checked

    if kind == "cagra":
        with refusals(kind, len(vectors)):
            return FaissIndex(build_cagra(faiss, ready(vectors), ordinal), kind, metric, table, device=device)
    kind = resolve_kind(kind, len(vectors), vectors.shape[1], device)
    index = new_index(faiss, vectors.shape[1], kind, metric)
    check_rows(faiss, index, kind, len(vectors))
    if not index.is_trained:
        with refusals(kind, len(vectors)):
            index.train(ready(sample(vectors, max(TRAIN_ROWS, rows_to_train(faiss, index)))))
    for start in range(0, len(vectors), ADD_BLOCK):
        with refusals(kind, len(vectors)):
            index.add(ready(vectors[start : start + ADD_BLOCK]))
        if progress is not None:
            progress(min(start + ADD_BLOCK, len(vectors)), len(vectors))
    return FaissIndex(index, kind, metric, table, device=device)


def load_index(
    path: Path, kind: str, metric: Metric, table: RowTable | None = None, *, device: str = "cpu"
) -> FaissIndex:
    """Return the index that `FaissIndex.write` wrote.

    faiss believes what it reads, so the digest of ``path`` must have been checked before.

    Raises:
        CorruptFileError: faiss cannot read the file, or it is not of the rows in ``table``.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError):
        raise CorruptFileError(f"{path} is not an index that faiss {faiss.__version__} can read; rebuild it") from None
    if table is not None and int(index.ntotal) != len(table if is_keyed(faiss, index) else table.rows):
        raise CorruptFileError(f"{path} has {index.ntotal} vectors for {len(table.rows)} rows; {ENGINE_REMEDY}")
    return FaissIndex(index, kind, as_metric(metric), table, device=device)
