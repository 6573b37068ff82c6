"""Postings of BM25, growing in memory or saved: the rows that contain each word, and the term frequencies."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedserve.errors import CorruptFileError
from embedserve.ragged import offsets_of
from indexing.storage.engine_files import ENGINE_REMEDY, array_writer, open_engine, read_array, save_engine

WORD = re.compile(r"[^\W_]+")
ENGINE = "words"
FILES = ("keys.npy", "offsets.npy", "rows.npy", "counts.npy", "lengths.npy")
Postings = tuple[np.ndarray, np.ndarray]


def words_of(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, case-folded and without diacritics.

    >>> words_of("L'Été, 2x_y")
    ['l', 'ete', '2x', 'y']
    """
    if not text.isascii():
        folded = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(character for character in folded if not unicodedata.combining(character))
    return WORD.findall(text.lower())


def key_of(word: str) -> int:
    """Return the integer key of a word, 63 bits of its BLAKE2b digest."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) >> 1


class GrowingWords:
    """Postings of texts that are appended; concurrent readers pass the number of texts they see."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._counts: dict[str, array[int]] = {}
        self._lengths = array("i")

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def all_lengths(self) -> array[int]:
        """The number of words of each text."""
        return self._lengths

    def append(self, texts: Sequence[str]) -> int:
        """Add ``texts`` as the next rows, and return the number of postings added."""
        added = 0
        for text in texts:
            words, row = words_of(text), len(self._lengths)
            counted = Counter(words)
            for word, count in counted.items():
                if word not in self._rows:
                    self._rows[word], self._counts[word] = array("i"), array("i")
                self._counts[word].append(count)  # before the row: a reader takes as many counts as rows
                self._rows[word].append(row)
            self._lengths.append(len(words))
            added += len(counted)
        return added

    def postings(self, word: str, count: int) -> Postings:
        """Return the rows below ``count`` that contain ``word``, ascending, and its frequencies."""
        rows = np.array(self._rows.get(word, array("i"))[:], dtype=np.int64)
        rows = rows[: np.searchsorted(rows, count)]
        return rows, np.array(self._counts.get(word, array("i"))[: len(rows)], dtype=np.float64)

    def lengths(self, count: int) -> np.ndarray:
        """Return the number of words of each of the first ``count`` texts, (count,) float64."""
        return np.array(self._lengths[:count], dtype=np.float64)

    def by_key(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the keys (w,) int64, ascending, the number of rows per key (w,), all rows and all counts int32."""
        keyed = sorted((key_of(word), word) for word in self._rows)
        sizes = np.array([len(self._rows[word]) for _, word in keyed], dtype=np.int64)
        rows, counts = array("i"), array("i")
        for _, word in keyed:
            rows += self._rows[word]
            counts += self._counts[word]
        keys = np.array([key for key, _ in keyed], dtype=np.int64)
        return keys, sizes, np.array(rows, dtype=np.int32), np.array(counts, dtype=np.int32)

    def save(self, directory: Path) -> None:
        """Write the postings to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        keys, sizes, rows, counts = self.by_key()
        offsets = offsets_of(sizes)
        arrays: tuple[np.ndarray, ...]
        arrays = (keys, offsets, rows, counts, np.array(self._lengths, dtype=np.int32))
        save_engine(directory, ENGINE, {}, {n: array_writer(v) for n, v in zip(FILES, arrays, strict=True)})


class SavedWords:
    """The postings that `GrowingWords.save` wrote to ``directory``; the errors are those of `open_engine`."""

    def __init__(self, directory: Path) -> None:
        saved = open_engine(directory, ENGINE)
        self._keys, self._offsets, self._rows, self._counts, self._lengths = (
            read_array(saved.files[name]) for name in FILES
        )
        valid = len(self._offsets) == len(self._keys) + 1 and len(self._rows) == len(self._counts) == self._offsets[-1]
        if not valid or (len(self._rows) and self._rows.max() >= len(self._lengths)):
            raise CorruptFileError(f"{directory} holds files that contradict each other; {ENGINE_REMEDY}")

    def __len__(self) -> int:
        return len(self._lengths)

    def postings(self, word: str, count: int) -> Postings:
        """Return the rows that contain ``word``, ascending, and its frequencies; ``count`` is unused."""
        key = key_of(word)
        index = int(np.searchsorted(self._keys, key))
        if index == len(self._keys) or self._keys[index] != key:
            return np.empty(0, dtype=np.int64), np.empty(0)
        part = slice(self._offsets[index], self._offsets[index + 1])
        return self._rows[part].astype(np.int64), self._counts[part].astype(np.float64)

    def lengths(self, count: int) -> np.ndarray:
        """Return the number of words of each text, (count,) float64."""
        return self._lengths.astype(np.float64)
