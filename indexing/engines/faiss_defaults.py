"""Default kinds and search parameters of faiss indexes, measured by `benchmarks.indexes.dense_search`.

On passages embedded by nano (d 320, one thread), a scan of all 4-bit codes with 400 candidates rescored had a recall@10
of 1.000 in 0.33 ms among 20,000 and of 0.999 in 0.7 ms among 100,000. Exhaustive search takes 1.5 and over 12 ms, an
HNSW graph 0.6 and 1.1 ms at a recall of 0.97 and 0.92. An IVF must read a quarter of its lists for 0.98.
"""

from __future__ import annotations

from math import sqrt

EF_SEARCH = 128  # candidates that an HNSW graph keeps
PROBED = 4  # an IVF reads one list in four
REFINE, CANDIDATES = 10, 400  # rescored with the stored vectors: per hit, and at least in all
SCAN_BELOW = 2_000  # filtered rows scored exhaustively, in 0.6 to 1.1 ms; recall of a graph: 92 %
LISTS = (16, 65_536)

# (number of vectors, kind): the first that is larger. Measured up to 100,000 vectors, extrapolated beyond.
AUTO = ((20_000, "flat"), (500_000, "fastscan"), (None, "ivf"))
AUTO_GPU = ((1_000_000, "flat"), (None, "ivf"))  # estimated, not measured
NAMES = ("auto", "flat", "fastscan", "ivf", "hnsw")


def resolve_kind(kind: str, count: int, dim: int, device: str = "cpu") -> str:
    """Return the faiss factory string of ``kind`` for ``count`` vectors of ``dim`` dimensions.

    ``flat`` scores all vectors. ``fastscan`` scores all 4-bit codes of pairs of dimensions, then the best with the
    stored vectors; it is an IVF of one list because faiss can filter that. ``ivf`` does the same in the nearest lists
    only. ``hnsw`` searches a graph. ``auto`` selects by `AUTO` or `AUTO_GPU`. Factory strings are returned unchanged.
    """
    on_gpu = device != "cpu"
    if kind == "auto":
        kind = next(name for below, name in (AUTO_GPU if on_gpu else AUTO) if below is None or count < below)
    lists = lists_for(count)
    return {
        "flat": "Flat",
        "fastscan": f"IVF1,{codes_for(dim)},RFlat",
        "ivf": f"IVF{lists},SQ8" if on_gpu else f"IVF{lists},{codes_for(dim)},RFlat",
        "hnsw": "HNSW32",
    }.get(kind, kind)


def lists_for(count: int) -> int:
    """Return the number of lists of an IVF of ``count`` vectors: the largest power of two up to 4 √N."""
    bound = max(1, int(4 * sqrt(count)))
    return min(max(1 << (bound.bit_length() - 1), LISTS[0]), LISTS[1])


def probes_for(lists: int, nprobe: int | None = None) -> int:
    """Return how many of an IVF's ``lists`` a search reads. Default: a quarter, and at least 16."""
    return min(max(lists // PROBED, 16) if nprobe is None else nprobe, lists)


def codes_for(dim: int) -> str:
    """Return the codes that an IVF scans: 4 bits per pair of dimensions if ``dim`` is even, else 8 per dimension."""
    return f"PQ{dim // 2}x4fs" if dim % 2 == 0 else "SQ8"
