"""Postings of many texts in bounded memory: sorted runs on disk, merged at the end.

Single-pass in-memory indexing (Heinz and Zobel 2003, section 3): postings are collected up to a limit, then written as
a run sorted by word; the runs are merged block by block. The files are those of `GrowingWords.save`.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from embedserve.ragged import offsets_of
from indexing.engines.bm25_postings import ENGINE, FILES, GrowingWords
from indexing.storage.engine_files import array_writer, save_engine

RUN_POSTINGS = 2**20  # per run: 8 MB, twice that while it is written
BLOCK_POSTINGS = 2**18  # merged at a time
POSTING_BYTES = 4


@dataclass(frozen=True)
class PostingRun:
    """One run: its words, and the offsets of their postings in the file.

    Attributes:
        keys: (w,) int64, ascending.
        offsets: (w + 1,) int64, of each word's postings within the run.
        starts: The byte offsets of the first row and the first count.
    """

    keys: np.ndarray
    offsets: np.ndarray
    starts: tuple[int, int]


class WordRuns:
    """Collects texts batch by batch; memory grows only by some bytes per distinct word of each run.

    Args:
        folder: For an unnamed file, which the system removes with the process.

    Raises:
        OSError: The disk cannot be written; from every method.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by `close`
        self._runs: list[PostingRun] = []
        self._words = GrowingWords()
        self._lengths = array("i")
        self._postings = 0

    def append(self, texts: Sequence[str]) -> None:
        """Add ``texts`` as the next rows."""
        self._postings += self._words.append(texts)
        if self._postings >= RUN_POSTINGS:
            self._write_run()

    def _write_run(self) -> None:
        first = len(self._lengths)
        keys, sizes, rows, counts = self._words.by_key()
        starts = []
        for values in (rows + np.int32(first), counts):
            starts.append(self._file.tell())
            self._file.write(values.data)
        offsets = offsets_of(sizes)
        self._runs.append(PostingRun(keys, offsets, (starts[0], starts[1])))
        self._lengths += self._words.all_lengths
        self._words, self._postings = GrowingWords(), 0

    def save(self, directory: Path) -> None:
        """Write the postings to ``directory``; the bytes do not depend on the division into runs."""
        if not self._runs:
            self._words.save(directory)
            return
        self._write_run()
        self._file.flush()
        keys, inverse = np.unique(np.concatenate([run.keys for run in self._runs]), return_inverse=True)
        sizes = np.zeros(len(keys), dtype=np.int64)
        np.add.at(sizes, inverse, np.concatenate([np.diff(run.offsets) for run in self._runs]))
        offsets = offsets_of(sizes)
        writers: list[Callable[[Path], object]] = [array_writer(keys), array_writer(offsets)]
        writers += [self._column_writer(column, keys, offsets) for column in (0, 1)]
        writers.append(array_writer(np.array(self._lengths, dtype=np.int32)))
        save_engine(directory, ENGINE, {}, dict(zip(FILES, writers, strict=True)))

    def _column_writer(self, column: int, keys: np.ndarray, offsets: np.ndarray) -> Callable[[Path], object]:
        """Return the function that writes the rows (0) or the counts (1) of all postings, sorted by word and row."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                header = {"descr": "<i4", "fortran_order": False, "shape": (int(offsets[-1]),)}
                npy.write_array_header_1_0(file, header)
                for start, stop in _blocks(offsets):
                    for part in self._merged(column, keys[start], keys[stop - 1]):
                        file.write(part.data)

        return write

    def _merged(self, column: int, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield the values of the keys from ``first`` to ``last``, sorted by word, then by row."""
        parts, words = [], []
        for run in self._runs:
            low, high = np.searchsorted(run.keys, [first, last + 1])
            if low < high:
                part = self._read(run, column, int(run.offsets[low]), int(run.offsets[high]))
                if first == last:
                    yield part  # a single word, which may exceed a block
                    continue
                parts.append(part)
                words.append(np.repeat(run.keys[low:high], np.diff(run.offsets[low : high + 1])))
        if parts:
            yield np.concatenate(parts)[np.argsort(np.concatenate(words), kind="stable")]

    def _read(self, run: PostingRun, column: int, start: int, stop: int) -> np.ndarray:
        offset = run.starts[column] + start * POSTING_BYTES
        data = os.pread(self._file.fileno(), (stop - start) * POSTING_BYTES, offset)
        return np.frombuffer(data, dtype="<i4")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of words with at most `BLOCK_POSTINGS` postings together, or a single word."""
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + BLOCK_POSTINGS, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop
