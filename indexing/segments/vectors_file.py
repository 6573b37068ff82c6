"""Write dense vectors to a ``.npy`` file batch by batch, one float32 row per document."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from indexing.base import as_vectors


class VectorWriter:
    """Appends rows to a ``.npy`` file that `numpy.load` reads after `finish`.

    Args:
        path: Must not exist.
        dim: Dimension of a row.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._file = path.open("xb")
        try:
            self._write_header()
            self._header_size = self._file.tell()
        except BaseException:  # close the file, then re-raise
            self.close()
            raise

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.dim)}
        npy.write_array_header_1_0(self._file, header)

    def append(self, vectors: np.ndarray) -> None:
        """Append rows (n, d) float32."""
        rows = as_vectors(vectors, self.dim)
        self._file.write(rows.astype("<f4", copy=False).data)
        self.count += len(rows)

    def finish(self) -> None:
        """Write the number of rows into the header, which has spare room for it."""
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._header_size:
            raise RuntimeError("the size of the .npy header changed")
        self._file.flush()

    def close(self) -> None:
        """Close the file; without `finish` it is invalid."""
        with suppress(OSError):
            self._file.close()
