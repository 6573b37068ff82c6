"""Ids that come again among any number of documents, found in a bounded amount of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

BUCKETS = 256
BUFFER = 65_536  # documents between two writes
Read = tuple[int, int]  # of a document: its place in reading order, from 0, and its line
ENTRY = np.dtype([("digest", "V16"), ("place", "<i8"), ("line", "<i8")])


class RepeatedIds:
    """Takes ids in reading order and says at the end which of them came again.

    Digests of 16 bytes go to 256 files by their first byte, 32 bytes a document; each file is sorted by itself. For a
    billion documents that is 32 GB on the disk and 125 MB at a time, and as much again to sort, in memory.

    Args:
        folder: Where the files may lie; nothing is left there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=".ids-", dir=folder)
        self._paths = [Path(self._folder.name) / f"{number:02x}" for number in range(BUCKETS)]
        self._digests: list[bytes] = []
        self._lines: list[int] = []
        self._count = 0

    def add(self, identifier: str, line: int = -1) -> None:
        """Take the id of the next document, and the line it stands on."""
        self._lines.append(line)
        self._digests.append(blake2b(identifier.encode(), digest_size=16).digest())
        if len(self._digests) == BUFFER:
            self._write()

    def _write(self) -> None:
        entries = np.empty(len(self._digests), dtype=ENTRY)
        entries["digest"] = np.frombuffer(b"".join(self._digests), dtype="V16")
        entries["place"] = np.arange(self._count, self._count + len(entries))
        entries["line"] = self._lines
        self._count += len(entries)
        self._digests.clear()
        self._lines.clear()
        buckets = np.ascontiguousarray(entries["digest"]).view("u1").reshape(-1, 16)[:, 0]
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
        for path, start, stop in zip(self._paths, bounds[:-1], bounds[1:], strict=True):
            with path.open("ab") as file:  # not kept open: some systems allow a process no more than 256 files
                file.write(entries[order[start:stop]].tobytes())

    def found(self) -> Iterator[tuple[Read, Read]]:
        """Yield each document whose id an earlier one has, and the first that has it."""
        if self._digests:
            self._write()
        for path in self._paths if self._count else ():
            entries = np.frombuffer(path.read_bytes(), dtype=ENTRY)
            keys = np.ascontiguousarray(entries["digest"]).view("<u8").reshape(-1, 2)
            order = np.lexsort((entries["place"], keys[:, 1], keys[:, 0]))
            same = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]).all(axis=1)) + 1
            first = -1
            for before, number in pairwise([-1, *same.tolist()]):
                if number != before + 1:
                    first = number - 1
                again, of = entries[order[number]], entries[order[first]]
                yield (int(again["place"]), int(again["line"])), (int(of["place"]), int(of["line"]))

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()


def left_out_of(repeated: Iterable[tuple[Read, Read]], refused: Container[int]) -> list[tuple[Read, Read]]:
    """Return the documents to leave out, each with the one of its id that stays: the first that was not refused.

    Args:
        repeated: What `RepeatedIds.found` yields, sorted.
        refused: Documents that the encoder refused, which are left out already.
    """
    stays: dict[Read, Read] = {}
    found = []
    for again, first in repeated:
        if again[0] not in refused:
            kept = stays.setdefault(first, again if first[0] in refused else first)
            if kept != again:
                found.append((again, kept))
    return found
