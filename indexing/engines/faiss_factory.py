"""Empty faiss indexes from factory strings, and clear errors. The faiss module is passed as an argument."""

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
MAX_LISTS = 2**22  # of an IVF; empty lists use memory, and faiss recommends 2**20 for 1e9 rows


def new_index(faiss: Any, dim: int, kind: str, metric: Metric) -> Any:
    """Return an empty faiss index for a factory string.

    Raises:
        InputError: faiss rejects the string, does not support inner products with it, or cannot fill such an index.
    """
    as_metric(metric)
    if any(lists > MAX_LISTS for lists in list_counts(kind)):
        raise InputError(f"index {kind!r} has more than {MAX_LISTS:,} lists; use fewer", field="index")
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


def list_counts(kind: str) -> list[float]:
    """Return the number of lists of each inverted file of a factory string."""
    flat = [float(number) * UNITS[unit] for number, unit in re.findall(r"IVF(\d+)([kM]?)", kind)]
    squares = [4.0 ** min(float(bits), 100) for bits in re.findall(r"IMI2x(\d+)", kind)]
    return flat + squares


def training_rows(faiss: Any, index: Any) -> int:
    """Return the minimum number of rows that an empty faiss index must be trained on.

    Each trained centroid needs a row: one per list of an IVF, one per code of a PQ.
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
    """Raise `InputError` if ``count`` rows are too few to train the empty faiss ``index``."""
    needed = training_rows(faiss, index)
    if count < needed:
        raise InputError(
            f"index {kind!r} cannot be built from {count} rows: training needs at least {needed} documents; "
            "use auto, flat or hnsw",
            field="index",
        )


@contextmanager
def build_errors(kind: str, count: int) -> Iterator[None]:
    """Convert errors of faiss, such as too few training rows, into an `InputError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"index {kind!r} cannot be built from {count} rows: {reason_of(error)}; use auto, flat or hnsw",
            field="index",
        ) from error


def reason_of(error: Exception) -> str:
    """Return the message of a faiss error without the C++ function, file and condition."""
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    text = str(error).rpartition("Error: ")[2].strip()
    return text.rpartition("' failed: ")[2].strip() or text


def sample(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` rows to train on, sampled with a fixed seed."""
    if len(vectors) <= count:
        return vectors
    return vectors[np.sort(np.random.default_rng(0).choice(len(vectors), count, replace=False))]
