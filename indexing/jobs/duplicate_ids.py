"""Detects duplicate ids among any number of documents in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

BUCKETS = 256
BUFFER = 65_536  # ids between two writes
ReadPosition = tuple[int, int]  # number of a document in reading order, from 0, and its line
ENTRY = np.dtype([("digest", "V16"), ("number", "<i8"), ("line", "<i8")])


class DuplicateIds:
    """Collects ids in reading order and reports the duplicates at the end.

    Digests of 16 bytes go to 256 files by their first byte, 32 bytes per document; each file is sorted in memory. A
    billion documents take 32 GB of disk, and 125 MB of memory per file plus as much for sorting it.

    Args:
        folder: Folder for a temporary folder, which is deleted at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=".ids-", dir=folder)
        self._paths = [Path(self._folder.name) / f"{number:02x}" for number in range(BUCKETS)]
        self._digests: list[bytes] = []
        self._lines: list[int] = []
        self._count = 0

    def add(self, identifier: str, line: int = -1) -> None:
        """Add the id of the next document, and its line."""
        self._lines.append(line)
        self._digests.append(blake2b(identifier.encode(), digest_size=16).digest())
        if len(self._digests) == BUFFER:
            self._write()

    def _write(self) -> None:
        entries = np.empty(len(self._digests), dtype=ENTRY)
        entries["digest"] = np.frombuffer(b"".join(self._digests), dtype="V16")
        entries["number"] = np.arange(self._count, self._count + len(entries))
        entries["line"] = self._lines
        self._count += len(entries)
        self._digests.clear()
        self._lines.clear()
        buckets = np.ascontiguousarray(entries["digest"]).view("u1").reshape(-1, 16)[:, 0]
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
        for path, start, stop in zip(self._paths, bounds[:-1], bounds[1:], strict=True):
            with path.open("ab") as file:  # opened each time: some systems limit a process to 256 open files
                file.write(entries[order[start:stop]].tobytes())

    def duplicates(self) -> Iterator[tuple[ReadPosition, ReadPosition]]:
        """Yield each document with the id of an earlier one, and the first document with that id."""
        if self._digests:
            self._write()
        for path in self._paths if self._count else ():
            entries = np.frombuffer(path.read_bytes(), dtype=ENTRY)
            keys = np.ascontiguousarray(entries["digest"]).view("<u8").reshape(-1, 2)
            order = np.lexsort((entries["number"], keys[:, 1], keys[:, 0]))
            equal = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]).all(axis=1)) + 1
            first = -1
            for previous, position in pairwise([-1, *equal.tolist()]):
                if position != previous + 1:
                    first = position - 1
                duplicate, original = entries[order[position]], entries[order[first]]
                yield (
                    (int(duplicate["number"]), int(duplicate["line"])),
                    (int(original["number"]), int(original["line"])),
                )

    def close(self) -> None:
        """Delete the temporary files."""
        self._folder.cleanup()


def excluded_duplicates(
    duplicates: Iterable[tuple[ReadPosition, ReadPosition]], refused: Container[int]
) -> list[tuple[ReadPosition, ReadPosition]]:
    """Return the documents to exclude, each with the one of its id that stays: the first that was not refused.

    Args:
        duplicates: What `DuplicateIds.duplicates` yields, sorted.
        refused: Numbers of the documents that the encoder refused, which are excluded already.
    """
    originals: dict[ReadPosition, ReadPosition] = {}
    excluded = []
    for duplicate, first in duplicates:
        if duplicate[0] not in refused:
            original = originals.setdefault(first, duplicate if first[0] in refused else first)
            if original != duplicate:
                excluded.append((duplicate, original))
    return excluded
