"""Which faiss index for how many vectors, and how hard it looks; chosen by `benchmarks.indexes.dense_search`.

On passages embedded by nano (d 320, one thread) a scan of all 4-bit codes, with 400 candidates compared anew, found
1.000 of the true ten in 0.33 ms among 20,000 and 0.999 in 0.7 ms among 100,000; brute force takes 1.5 and over 12 ms,
an HNSW graph 0.6 and 1.1 ms for 0.97 and 0.92. An IVF has to read a quarter of its lists for 0.98.
"""

from __future__ import annotations

from math import sqrt

EF_SEARCH = 128  # candidates that an HNSW graph keeps
PROBED = 4  # an IVF reads one list in so many
REFINE, CANDIDATES = 10, 400  # compared with the stored vectors: for each hit wanted, and at least in all
SCAN_BELOW = 2_000  # so few rows that a filter lets through are all compared, in 0.6 to 1.1 ms; a graph would find 92 %
LISTS = (16, 65_536)

# Kinds by size, the first that is large enough; `benchmarks.indexes.dense_search` up to 100,000 vectors, beyond by
# calculation.
AUTO = ((20_000, "flat"), (500_000, "fastscan"), (None, "ivf"))
AUTO_GPU = ((1_000_000, "flat"), (None, "ivf"))  # by calculation: no GPU was at hand
NAMES = ("auto", "flat", "fastscan", "ivf", "hnsw")


def resolve_kind(kind: str, count: int, dim: int, device: str = "cpu") -> str:
    """Return the faiss factory string that ``kind`` means for ``count`` vectors of ``dim`` numbers.

    ``flat`` compares all vectors. ``fastscan`` compares codes of 4 bits for every two numbers with all of them, then
    the best with the stored vectors; its one list lets faiss filter. ``ivf`` does so in the nearest lists alone.
    ``hnsw`` walks a graph. ``auto`` is one of these by `AUTO`, or by `AUTO_GPU`. Factory strings pass as they are.
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
    """Return how many lists an IVF of ``count`` vectors has: the power of two next below 4 √N."""
    wanted = max(1, int(4 * sqrt(count)))
    return min(max(1 << (wanted.bit_length() - 1), LISTS[0]), LISTS[1])


def probes_for(lists: int, wanted: int | None = None) -> int:
    """Return how many of an IVF's ``lists`` a search reads: ``wanted``, or a quarter and at least 16; never more."""
    return min(max(lists // PROBED, 16) if wanted is None else wanted, lists)


def codes_for(dim: int) -> str:
    """Return the codes that an IVF scans: 4 bits for every two numbers where ``dim`` is even, else 8 for each."""
    return f"PQ{dim // 2}x4fs" if dim % 2 == 0 else "SQ8"
