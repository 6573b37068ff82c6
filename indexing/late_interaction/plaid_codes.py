"""What fast-plaid keeps of documents' tokens, and the files that it stands in.

fast-plaid works in a folder of its own and numbers documents in the order in which they came, closing up where one is
deleted. Files that it would pickle are neither written nor read.
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
KEPT = re.compile(
    r"\d+\.(codes|residuals)\.npy|doclens\.\d+\.json|\d+\.metadata\.json|(metadata|plan)\.json"
    r"|(avg_residual|bucket_cutoffs|bucket_weights|centroids|cluster_threshold|ivf|ivf_lengths)\.npy"
)


def import_fast_plaid() -> Any:
    """Return the module ``fast_plaid.search``.

    Raises:
        LoadError: It is not installed, or was compiled for another torch, with which it would crash.
    """
    try:
        wanted = next((line for line in requires("fast-plaid") or () if line.startswith("torch==")), "torch==")
    except PackageNotFoundError:
        raise LoadError(f"fast-plaid is not installed; {REMEDY}") from None
    version = wanted.removeprefix("torch==").partition(";")[0].strip()
    found = torch.__version__.partition("+")[0]
    if version and version != found:
        raise LoadError(f"this fast-plaid was compiled for torch {version} and would crash with {found}; {REMEDY}")
    return import_module("fast_plaid.search")


class PlaidCodes:
    """Documents, each known by a row number, as the numbers of centroids and some bits for each dimension.

    Args:
        bits: For each dimension of a token.
        folder: Where to make the folder of files that fast-plaid works in, which goes with the object; None makes it
            where the system keeps temporary ones.
        archive: What `write` wrote; None for no documents.
        rows: Those of the documents in it, in their order.

    Raises:
        LoadError: fast-plaid cannot be used here.
        CorruptFileError: The archive holds something else.
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
        """Add documents (t, d), each of unit vectors, under the row numbers ``rows`` (n,) that are not there yet.

        The first ones give the centroids; later ones add centroids where they are far from all.
        """
        options: dict[str, Any] = {"start_from_scratch": 0, "seed": SEED}  # 0: keep no pickle of the documents
        with _seeded():
            if len(self.table):
                self._plaid.update(list(documents), buffer_size=0, **options)
            else:
                self._plaid.create(list(documents), nbits=self.bits, **options)
        self.table.append(rows)

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out."""
        places = self.table.find_known(rows)
        self._plaid.delete(places.tolist())
        self.table.close_up(places)

    def find(
        self, query: np.ndarray, count: int, scanned: int, probes: int, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """Return at most ``count`` rows (m,) that match a query (q, d) best, best first.

        Args:
            query: float32.
            count: Rows wanted.
            scanned: Documents that are ranked by their centroids; the best quarter of them is ranked by all its codes.
            probes: For each row of the query, nearest centroids whose documents are looked at.
            allowed: The only rows that may be found.
        """
        subset = None if allowed is None else [self.table.find(allowed).tolist()]
        if subset == [[]] or not len(self.table):
            return np.empty(0, dtype=np.int64)
        (found,) = self._plaid.search(
            torch.from_numpy(query)[None],
            top_k=count,
            n_full_scores=scanned,
            n_ivf_probe=min(probes, self._centroids()),
            subset=subset,
            show_progress=False,
            n_processes=1,
        )
        return self.table.rows[[place for place, _ in found]]

    def _centroids(self) -> int:
        return len(np.load(self._folder / "centroids.npy", mmap_mode="r"))

    def write(self, path: Path) -> None:
        """Write what fast-plaid needs to a new archive."""
        with zipfile.ZipFile(path, "x") as archive:
            for file in sorted(self._folder.iterdir()):
                if KEPT.fullmatch(file.name):
                    archive.write(file, file.name)


def unpack(path: Path, folder: Path) -> None:
    """Write the files of an archive to ``folder``; raise `CorruptFileError` for any that fast-plaid need not have."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not KEPT.fullmatch(name):
                    raise CorruptFileError(f"{path} holds {name!r}, which is no file of such an index; {ENGINE_REMEDY}")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CorruptFileError(f"{path} is not readable: {error}; {ENGINE_REMEDY}") from None


def as_tensors(vectors: np.ndarray, offsets: np.ndarray) -> list[torch.Tensor]:
    """Return each document's vectors (t, d) at unit length, float16, of all (T, d) and their offsets (N + 1,)."""
    return list(torch.from_numpy(unit(vectors)).half().split(np.diff(offsets).tolist()))


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the generators that all share and that fast-plaid draws from; afterwards they go on as before."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
