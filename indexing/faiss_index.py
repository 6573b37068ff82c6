"""FAISS behind our own promises: a stated metric, checked input, no -1; the only file that imports faiss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError, LoadError
from indexing.base import Hits, Metric, as_metric, as_queries, as_vectors, make_hits, unit

FLAT_BELOW = 50_000  # brute force answers in a few ms up to here; above, building a graph pays
KINDS = {"flat": "Flat", "hnsw": "HNSW32"}
EF_SEARCH = 128
NPROBE = 16
ADD_BLOCK = 8_192
TRAIN_ROWS = 262_144


def import_faiss() -> Any:
    """Return the faiss module, or raise `LoadError` saying how to install it."""
    try:
        import faiss
    except ImportError:
        raise LoadError(
            "faiss is not installed; `pip install -e '.[cpu]'` (or '.[gpu]', never both), "
            'or build the collection with index="exact"'
        ) from None
    return faiss


def resolve_kind(kind: str, count: int) -> str:
    """Return the faiss factory string that ``kind`` means for ``count`` rows; ``auto`` chooses by size."""
    if kind == "auto":
        kind = "flat" if count < FLAT_BELOW else "hnsw"
    return KINDS.get(kind, kind)


class FaissIndex:
    """A trained and filled faiss index.

    Args:
        index: The faiss index, built for the inner product.
        kind: The factory string it was made by.
        metric: ``cosine`` or ``inner_product``.
    """

    def __init__(self, index: Any, kind: str, metric: Metric) -> None:
        self._faiss = import_faiss()
        self._index = index
        self.kind = kind
        self.metric = metric
        self._is_hnsw = isinstance(index, self._faiss.IndexHNSW)
        if not self._is_hnsw and (ivf := self._faiss.try_extract_index_ivf(index)) is not None:
            ivf.nprobe = min(NPROBE, ivf.nlist)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._index.d)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: np.ndarray, k: int, *, ef_search: int = EF_SEARCH) -> Hits:
        """Return the best ``k`` rows of each query (Q, d).

        An approximate kind may miss rows, and may find fewer than ``k``; rows with equal scores are ordered by
        row, but which of them take the last places is faiss's choice.

        Args:
            queries: (Q, d) float32.
            k: Hits for each query, clipped to the number of rows.
            ef_search: Candidates an HNSW graph keeps while searching; more is slower and finds more.
        """
        queries, k = as_queries(self, queries, k)
        if k == 0 or len(queries) == 0:
            return make_hits(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
        params = self._faiss.SearchParametersHNSW(efSearch=max(ef_search, k)) if self._is_hnsw else None
        scores, rows = self._index.search(queries, k, params=params)
        return make_hits(rows, scores)

    def save(self, path: Path) -> None:
        """Write the index to ``path``; raise `OSError` where that fails, a full disk included.

        The file is Python's: faiss's own writer prints a failing close and goes on, leaving the file cut short.
        """
        with path.open("wb") as file:
            try:
                self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(file.write))
            except RuntimeError as error:
                raise OSError(f"cannot write {path}: {error}") from None


def new_index(dim: int, kind: str, metric: Metric) -> Any:
    """Return an empty faiss index for a factory string.

    Raises:
        InputError: faiss does not know the string, cannot do inner products with it, or could build nothing of it.
    """
    faiss = import_faiss()
    as_metric(metric)
    try:
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
        usable = all(map(is_usable, parts_of(index)))
    except (RuntimeError, MemoryError):
        usable = False
    if not usable:
        raise InputError(
            f"index {kind!r} is unknown, or does not fit {dim} dimensions; "
            "use auto, flat, hnsw, exact or a faiss factory string such as IVF1024,SQ8",
            field="index",
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or isinstance(index, faiss.IndexIDMap):
        raise InputError(f"index {kind!r} cannot rank by {metric}; use auto, flat or hnsw", field="index")
    return index


def parts_of(index: Any) -> Iterator[Any]:
    """Yield a faiss index and the indexes inside of it, each as what it is."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index", "storage", "quantizer"):
        inner = getattr(index, name, None)
        if isinstance(inner, faiss.Index):
            yield from parts_of(inner)


def transforms_of(index: Any) -> list[Any]:
    """Return what a faiss index does to vectors before it stores them, each step as what it is."""
    faiss = import_faiss()
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(step)) for step in range(index.chain.size())]


def is_usable(index: Any) -> bool:
    """Return whether one part of an index can be filled: of these faiss makes what then fails, or ends the process."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexHNSW):
        return int(index.hnsw.nb_neighbors(1)) >= 2  # HNSW1 and HNSW0 abort on the first row
    if isinstance(index, faiss.IndexIVF):
        return int(index.nlist) >= 1
    return all(int(step.d_out) <= int(step.d_in) for step in transforms_of(index) if isinstance(step, faiss.PCAMatrix))


def rows_to_train(index: Any) -> int:
    """Return how many rows an empty faiss index needs to be trained on at least, as far as its parts tell.

    faiss learns centroids, and each of them needs a row: one for each list of an IVF, one for each code of a PQ.
    """
    faiss = import_faiss()
    needed = 0
    for part in parts_of(index):
        if isinstance(part, faiss.IndexIVF) and part.quantizer_trains_alone != 1:
            needed = max(needed, int(part.nlist))
        codes = getattr(part, "pq", None)
        if isinstance(codes, faiss.ProductQuantizer) and not part.is_trained:
            needed = max(needed, int(codes.ksub))
    return needed


def check_rows(index: Any, kind: str, count: int) -> None:
    """Raise `InputError` where ``count`` rows are too few to train the empty faiss ``index``."""
    needed = rows_to_train(index)
    if count < needed:
        raise InputError(
            f"index {kind!r} cannot be built of {count} rows: it needs at least {needed} documents to be trained on; "
            "use auto, flat or hnsw",
            field="index",
        )


def build_index(
    vectors: np.ndarray,
    kind: str = "auto",
    metric: Metric = "cosine",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> FaissIndex:
    """Return a faiss index of ``vectors``.

    Args:
        vectors: (N, d) float32, a memory map or an array; read in blocks, row i of the index is row i here.
        kind: ``auto``, ``flat``, ``hnsw`` or a faiss factory string.
        metric: ``cosine`` scales every vector to unit length; ``inner_product`` takes them as they are.
        progress: Called with rows added and rows in all.

    Raises:
        InputError: No rows, too few to train on, not finite, or an unknown kind.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(
            f"vectors must be an array (N, d) with N at least 1, got shape {vectors.shape}", field="vectors"
        )
    metric = as_metric(metric)
    kind = resolve_kind(kind, len(vectors))
    index = new_index(vectors.shape[1], kind, metric)
    check_rows(index, kind, len(vectors))

    def ready(block: np.ndarray) -> np.ndarray:
        checked = as_vectors(block)
        return unit(checked) if metric == "cosine" else checked

    if not index.is_trained:
        with refusals(kind, len(vectors)):
            index.train(ready(sample(vectors, max(TRAIN_ROWS, rows_to_train(index)))))
    for start in range(0, len(vectors), ADD_BLOCK):
        with refusals(kind, len(vectors)):
            index.add(ready(vectors[start : start + ADD_BLOCK]))
        if progress is not None:
            progress(min(start + ADD_BLOCK, len(vectors)), len(vectors))
    return FaissIndex(index, kind, metric)


@contextmanager
def refusals(kind: str, count: int) -> Iterator[None]:
    """Turn faiss's refusal of the data, such as too few rows to train on, into an `InputError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"index {kind!r} cannot be built of {count} rows: {refusal(error)}; use auto, flat or hnsw",
            field="index",
        ) from error


def refusal(error: Exception) -> str:
    """Return what faiss has to say, without the C++ function, file and condition that come before it."""
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    text = str(error).rpartition("Error: ")[2].strip()
    return text.rpartition("' failed: ")[2].strip() or text


def sample(vectors: np.ndarray, wanted: int) -> np.ndarray:
    """Return the rows to train on: all, or a fixed random choice of ``wanted``."""
    if len(vectors) <= wanted:
        return vectors
    return vectors[np.sort(np.random.default_rng(0).choice(len(vectors), wanted, replace=False))]


def load_index(path: Path, kind: str, metric: Metric) -> FaissIndex:
    """Return the index that `FaissIndex.save` wrote.

    faiss believes what it reads, so the digest of ``path`` must have been checked before.

    Raises:
        CorruptFileError: faiss cannot read the file.
    """
    faiss = import_faiss()
    try:
        return FaissIndex(faiss.read_index(str(path)), kind, as_metric(metric))
    except (RuntimeError, MemoryError):
        raise CorruptFileError(f"{path} is not an index that faiss {faiss.__version__} can read; rebuild it") from None
