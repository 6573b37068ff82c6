"""A fast-plaid index in a temporary folder, with the row of each of its documents.

fast-plaid numbers documents in insertion order, and renumbers later ones when one is deleted. Its pickled files are
neither written nor read.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedserve.errors import CorruptFileError, LoadError
from indexing.base import unit
from indexing.storage.engine_files import ENGINE_REMEDY
from indexing.storage.row_table import RowTable

SEED = 42
REMEDY = "`pip install -e '.[cpu,pylate]' -c constraints/pylate.txt` (embedserve[pylate]) in an environment of its own"
ARCHIVED = re.compile(
    r"\d+\.(codes|residuals)\.npy|doclens\.\d+\.json|\d+\.metadata\.json|(metadata|plan)\.json"
    r"|(avg_residual|bucket_cutoffs|bucket_weights|centroids|cluster_threshold|ivf|ivf_lengths)\.npy"
)


def import_fast_plaid() -> Any:
    """Return the module ``fast_plaid.search``.

    Raises:
        LoadError: It is not installed, or was compiled for another version of torch, with which it would crash.
    """
    try:
        requirement = next((line for line in requires("fast-plaid") or () if line.startswith("torch==")), "torch==")
    except PackageNotFoundError:
        raise LoadError(f"fast-plaid is not installed; {REMEDY}") from None
    version = requirement.removeprefix("torch==").partition(";")[0].strip()
    installed = torch.__version__.partition("+")[0]
    if version and version != installed:
        raise LoadError(f"this fast-plaid was compiled for torch {version} and would crash with {installed}; {REMEDY}")
    return import_module("fast_plaid.search")


class PlaidCodes:
    """The codes of documents by row number: the centroid of each token and some bits per dimension.

    Args:
        bits: Bits per dimension.
        folder: Where to create fast-plaid's working folder, which is removed with the object. Default: the system's
            temporary folder.
        archive: A file written by `write`. Default: no documents.
        rows: The rows of the archived documents, in insertion order.

    Raises:
        LoadError: fast-plaid cannot be used here.
        CorruptFileError: The archive is not such a file.
    """

    def __init__(
        self, bits: int, folder: Path | None = None, *, archive: Path | None = None, rows: np.ndarray | None = None
    ) -> None:
        search = import_fast_plaid()
        self.bits = bits
        self.table = RowTable(np.empty(0, dtype=np.int64) if rows is None else rows)
        self._folder = Path(tempfile.mkdtemp(prefix="plaid-", dir=folder))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        if archive is not None:
            unpack(archive, self._folder)
        self._plaid = search.FastPlaid(str(self._folder), device="cpu")
        if archive is not None and (self._plaid.indices["cpu"] is None or self._documents() != len(self.table)):
            raise CorruptFileError(f"{archive} does not hold {len(self.table)} documents; {ENGINE_REMEDY}")

    def _documents(self) -> int:
        return int(json.loads((self._folder / "metadata.json").read_text())["num_documents"])

    def add(self, rows: np.ndarray, documents: Sequence[torch.Tensor]) -> None:
        """Add documents (t, d), each of unit vectors, under the new row numbers ``rows`` (n,).

        The first call trains the centroids; later calls add centroids for tokens that are far from all of them.
        """
        options: dict[str, Any] = {"start_from_scratch": 0, "seed": SEED}  # 0: do not pickle the documents
        with _seeded():
            if len(self.table):
                self._plaid.update(list(documents), buffer_size=0, **options)
            else:
                self._plaid.create(list(documents), nbits=self.bits, **options)
        self.table.append(rows)

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,)."""
        positions = self.table.find_known(rows)
        self._plaid.delete(positions.tolist())
        self.table.delete(positions)

    def find(
        self, query: np.ndarray, count: int, scanned: int, probes: int, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """Return at most ``count`` rows (m,) for a query (q, d), best first.

        Args:
            query: float32.
            count: Maximum number of rows.
            scanned: Documents that are ranked by centroids; the best quarter is ranked by all codes.
            probes: Nearest centroids per query row whose documents are read.
            allowed: The only rows that may match. Default: all.
        """
        subset = None if allowed is None else [self.table.find(allowed).tolist()]
        if subset == [[]] or not len(self.table):
            return np.empty(0, dtype=np.int64)
        (results,) = self._plaid.search(
            torch.from_numpy(query)[None],
            top_k=count,
            n_full_scores=scanned,
            n_ivf_probe=min(probes, self._centroids()),
            subset=subset,
            show_progress=False,
            n_processes=1,
        )
        return self.table.rows[[position for position, _ in results]]

    def _centroids(self) -> int:
        return len(np.load(self._folder / "centroids.npy", mmap_mode="r"))

    def write(self, path: Path) -> None:
        """Write the files of fast-plaid to a new archive."""
        with zipfile.ZipFile(path, "x") as archive:
            for file in sorted(self._folder.iterdir()):
                if ARCHIVED.fullmatch(file.name):
                    archive.write(file, file.name)


def unpack(path: Path, folder: Path) -> None:
    """Extract an archive to ``folder``; raise `CorruptFileError` for a file that is not one of fast-plaid's."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not ARCHIVED.fullmatch(name):
                    raise CorruptFileError(f"{path} holds {name!r}, which is not a file of fast-plaid; {ENGINE_REMEDY}")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CorruptFileError(f"{path} is not readable: {error}; {ENGINE_REMEDY}") from None


def as_tensors(vectors: np.ndarray, offsets: np.ndarray) -> list[torch.Tensor]:
    """Return each document's vectors (t, d) at unit length, float16, of all (T, d) and their offsets (N + 1,)."""
    return list(torch.from_numpy(unit(vectors)).half().split(np.diff(offsets).tolist()))


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the global random generators, which fast-plaid uses, and restore their state at the end."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
