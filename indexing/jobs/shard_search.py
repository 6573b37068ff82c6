"""Search over shards as they stand, each by itself and in parallel, and the best of all: without building an index.

The scores are those of brute force over all vectors; equal ones are settled by the order of the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embedserve.errors import InputError
from indexing.base import Hits, as_vectors, clip_k, make_hits, unit
from indexing.engines.exact import ROW_BLOCK, search_blocks
from indexing.jobs.shard_files import read_record

Part = tuple[Path, int]  # a shard, and the number of its first row over all


class Searcher(Protocol):
    """Searches parts in parallel."""

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the best ``k`` rows of each query (Q, d) over all shards; rows are counted in the shards' order."""
        ...


def parts_of(folders: Sequence[Path]) -> tuple[list[Part], int]:
    """Return complete shards with the number of the first row of each, and the number of all rows."""
    parts, rows = [], 0
    for folder in folders:
        parts.append((folder, rows))
        rows += read_record(folder).rows
    return parts, rows


def search_part(parts: Sequence[Part], queries: np.ndarray, k: int) -> Hits:
    """Return the best ``k`` rows of each of unit ``queries`` (Q, d) in some shards, by cosine."""
    rows = sum(read_record(folder).rows for folder, _ in parts)
    return search_blocks(queries, min(k, rows), blocks_of(parts))


def blocks_of(parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows and the unit vectors of shards, some in memory at a time."""
    for folder, first in parts:
        path = folder / "dense.npy"
        if not path.exists():
            continue
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        for start in range(0, len(vectors), ROW_BLOCK):
            block = np.array(vectors[start : start + ROW_BLOCK])
            yield np.arange(first + start, first + start + len(block)), unit(block)


def merge_hits(found: Sequence[Hits], k: int) -> Hits:
    """Return the best ``k`` of each query over ``found``, at least one; equal scores by lower row."""
    rows = np.concatenate([np.where(np.isfinite(hits.scores), hits.rows, -1) for hits in found], axis=1)
    merged = make_hits(rows, np.concatenate([hits.scores for hits in found], axis=1))
    return Hits(merged.rows[:, :k], merged.scores[:, :k], np.minimum(merged.counts, k))


def spread(parts: Sequence[Part], workers: int) -> list[list[Part]]:
    """Return ``parts`` dealt out to workers, none of which goes without."""
    return [list(parts[worker::workers]) for worker in range(min(workers, len(parts)))]


class LocalSearcher:
    """Searches shards with processes of this machine.

    Args:
        folders: Complete shards with dense vectors, in order.
        workers: Processes.
    """

    def __init__(self, folders: Sequence[Path], workers: int = 2) -> None:
        parts, self.rows = check_parts(folders, workers)
        self._parts = spread(parts, workers)
        self._pool = ProcessPoolExecutor(len(self._parts), get_context("spawn"))

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the best ``k`` rows of each query (Q, d) over all shards; rows are counted in the shards' order."""
        vectors, k = unit(as_vectors(queries, field="queries")), clip_k(k, self.rows)
        found = [self._pool.submit(search_part, parts, vectors, k) for parts in self._parts]
        return merge_hits([each.result() for each in found], k)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


class RaySearcher:
    """Searches shards with actors of the Ray cluster that this process has joined; else as `LocalSearcher`."""

    def __init__(self, folders: Sequence[Path], workers: int = 2) -> None:
        from indexing.jobs.ray_engine import import_ray

        self._ray = import_ray()
        parts, self.rows = check_parts(folders, workers)
        actor = self._ray.remote(PartSearcher).options(num_cpus=1)
        self._actors: list[Any] = [actor.remote(each) for each in spread(parts, workers)]

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the best ``k`` rows of each query (Q, d) over all shards; rows are counted in the shards' order."""
        vectors, k = unit(as_vectors(queries, field="queries")), clip_k(k, self.rows)
        return merge_hits(self._ray.get([actor.search.remote(vectors, k) for actor in self._actors]), k)

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)


class PartSearcher:
    """An actor that searches some of the shards."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the best ``k`` rows of each unit query in its shards."""
        return search_part(self._parts, queries, k)


def check_parts(folders: Sequence[Path], workers: int) -> tuple[list[Part], int]:
    """Return what `parts_of` does; raise `InputError` where there is nothing to search, or nobody to do it."""
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}", field="workers")
    parts, rows = parts_of(folders)
    if not rows:
        raise InputError("there are no shards with rows to search", field="folders")
    return parts, rows
