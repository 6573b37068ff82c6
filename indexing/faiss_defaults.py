"""Which faiss index for how many vectors, and how hard it looks; chosen by `benchmarks.dense_index`."""

from __future__ import annotations

from math import sqrt

FLAT_BELOW = 20_000  # brute force answers in a few ms up to here
GPU_FLAT_BELOW = 1_000_000  # on a GPU brute force goes further; not measured yet
EF_SEARCH = 128  # candidates that an HNSW graph keeps
NPROBE = 32  # lists that an IVF reads
REFINE = 8  # candidates that are compared with the stored vectors for each hit wanted
SCAN_BELOW = 2_000  # so few rows that a filter lets through are simply compared with the query, all of them
LISTS = (16, 65_536)

KINDS = {"flat": "Flat", "hnsw": "HNSW32"}
NAMES = ("auto", *KINDS, "ivf")


def resolve_kind(kind: str, count: int, dim: int, device: str = "cpu") -> str:
    """Return the faiss factory string that ``kind`` means for ``count`` vectors of ``dim`` numbers.

    ``auto`` is ``flat`` up to `FLAT_BELOW` vectors and ``ivf`` above; on a GPU up to `GPU_FLAT_BELOW`. Factory strings
    pass as they are.
    """
    on_gpu = device != "cpu"
    if kind == "auto":
        kind = "flat" if count < (GPU_FLAT_BELOW if on_gpu else FLAT_BELOW) else "ivf"
    if kind == "ivf":
        return f"IVF{lists_for(count)},SQ8" if on_gpu else f"IVF{lists_for(count)},{codes_for(dim)},RFlat"
    return KINDS.get(kind, kind)


def lists_for(count: int) -> int:
    """Return how many lists an IVF of ``count`` vectors has: the power of two next below 4 √N."""
    wanted = max(1, int(4 * sqrt(count)))
    return min(max(1 << (wanted.bit_length() - 1), LISTS[0]), LISTS[1])


def codes_for(dim: int) -> str:
    """Return the codes that an IVF scans: 4 bits for every two numbers where ``dim`` is even, else 8 for each."""
    return f"PQ{dim // 2}x4fs" if dim % 2 == 0 else "SQ8"
