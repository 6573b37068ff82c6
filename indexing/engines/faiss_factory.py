"""Empty faiss indexes from factory strings, and what faiss refuses in our words. faiss itself is handed in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from embedserve.errors import InputError
from indexing.base import Metric, as_metric
from indexing.engines.faiss_parts import is_usable, parts_of

UNITS = {"": 1, "k": 1024, "M": 1024**2}
MOST_LISTS = 2**22  # of an IVF: each takes memory before there is a row; faiss advises 2**20 for 1e9 rows


def new_index(faiss: Any, dim: int, kind: str, metric: Metric) -> Any:
    """Return an empty faiss index for a factory string.

    Raises:
        InputError: faiss does not know the string, cannot do inner products with it, or could build nothing of it.
    """
    as_metric(metric)
    if any(lists > MOST_LISTS for lists in lists_of(kind)):
        raise InputError(f"index {kind!r} has more than {MOST_LISTS:,} lists; take fewer", field="index")
    try:
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
        usable = all(is_usable(faiss, part) for part in parts_of(faiss, index))
    except (RuntimeError, MemoryError):
        usable = False
    if not usable:
        raise InputError(
            f"index {kind!r} is unknown, or does not fit {dim} dimensions; "
            "use auto, flat, ivf, hnsw, exact or a faiss factory string such as IVF1024,SQ8",
            field="index",
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or isinstance(index, faiss.IndexIDMap):
        raise InputError(f"index {kind!r} cannot rank by {metric}; use auto, flat or hnsw", field="index")
    return index


def lists_of(kind: str) -> list[float]:
    """Return how many lists each inverted file of a factory string has."""
    flat = [float(number) * UNITS[unit] for number, unit in re.findall(r"IVF(\d+)([kM]?)", kind)]
    squares = [4.0 ** min(float(bits), 100) for bits in re.findall(r"IMI2x(\d+)", kind)]
    return flat + squares


def rows_to_train(faiss: Any, index: Any) -> int:
    """Return how many rows an empty faiss index needs to be trained on at least, as far as its parts tell.

    faiss learns centroids, and each of them needs a row: one for each list of an IVF, one for each code of a PQ.
    """
    needed = 0
    for part in parts_of(faiss, index):
        if isinstance(part, faiss.IndexIVF) and part.quantizer_trains_alone != 1:
            needed = max(needed, int(part.nlist))
        codes = getattr(part, "pq", None)
        if isinstance(codes, faiss.ProductQuantizer) and not part.is_trained:
            needed = max(needed, int(codes.ksub))
    return needed


def check_rows(faiss: Any, index: Any, kind: str, count: int) -> None:
    """Raise `InputError` where ``count`` rows are too few to train the empty faiss ``index``."""
    needed = rows_to_train(faiss, index)
    if count < needed:
        raise InputError(
            f"index {kind!r} cannot be built of {count} rows: it needs at least {needed} documents to be trained on; "
            "use auto, flat or hnsw",
            field="index",
        )


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
