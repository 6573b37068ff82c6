"""An array that grows by rows, in memory or in an unnamed file."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import IO

import numpy as np


class GrowingArray:
    """Rows of one shape and dtype, appended block by block.

    Args:
        start: The first rows (n, …); n may be 0. A memory map is copied only when rows are appended.
        folder: Where to keep the rows, in an unnamed file that the system removes with the process. Default: in memory.
    """

    def __init__(self, start: np.ndarray, folder: Path | None = None) -> None:
        self._values = start
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._count = len(start)

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> np.ndarray:
        """The current rows, as a view that later appends do not change."""
        if self._file is not None and len(self._values) != self._count:
            shape = (self._count, *self._values.shape[1:])
            self._values = np.asarray(np.memmap(self._file, self._values.dtype, "r", shape=shape))
        return self._values[: self._count]

    def append(self, rows: np.ndarray) -> None:
        """Append ``rows`` (n, …); on a full disk raise `OSError` and change nothing."""
        rows = np.ascontiguousarray(rows, dtype=self._values.dtype)
        if len(rows) == 0:
            return
        if self._folder is not None:
            self._write(rows)
        else:
            self._store(rows)
        self._count += len(rows)

    def _write(self, rows: np.ndarray) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed with the array:
            weakref.finalize(self, self._file.close)
            self._file.write(np.ascontiguousarray(self._values).data)
        self._file.seek(self._count * rows[0].nbytes)
        self._file.write(rows.data)
        self._file.flush()

    def _store(self, rows: np.ndarray) -> None:
        needed = self._count + len(rows)
        if needed > len(self._values) or not self._values.flags.writeable:
            larger = np.empty((max(needed, self._count * 3 // 2), *self._values.shape[1:]), self._values.dtype)
            larger[: self._count] = self._values[: self._count]
            self._values = larger
        self._values[self._count : needed] = rows
