"""Shards on disk: one folder each, created atomically and verified by digests.

``shard.json`` lists every other file with size and digest: ``documents.jsonl`` (canonical JSON, one row per line),
``places.npy`` (position of each row in the shard's input) and the vectors of each output of the encoder.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

from embedserve import disk_records
from embedserve.disk_records import record_text
from embedserve.errors import CorruptFileError
from embedserve.types import Encoded
from indexing.jobs.shard_split import ShardSettings
from indexing.storage.checksums import FileRecord, check_file, record_of
from indexing.storage.files import make_directory, sync

SHARD, ROWS = "shard.json", "documents.jsonl"
DIGITS = 2  # of the name, as parent folder: a folder with a million entries is slow to list
REMEDY = "run the job again; it encodes this shard again"

State = Literal["missing", "done", "damaged"]


@dataclass(frozen=True)
class ShardRecord:
    """The contents of shard.json.

    Attributes:
        name: Name of the shard, as in `indexing.jobs.shard_split.ShardInput`.
        settings: Its settings, as `ShardSettings.plain`.
        documents: Documents of its input, including refused ones.
        rows: Rows: documents or their passages.
        tokens: Tokens that the encoder read.
        truncated: Rows truncated to the encoder's maximum length.
        refused: Position in the input (``place``), id and reason of each document that the encoder refused.
        files: The other files.
    """

    name: str
    settings: Mapping[str, Any]
    documents: int
    rows: int
    tokens: int
    truncated: int
    refused: Sequence[Mapping[str, Any]]
    files: Mapping[str, FileRecord]

    def to_json(self) -> str:
        """Return the text of shard.json."""
        return record_text(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> ShardRecord:
        """Return the record of parsed values; raise `KeyError` or `TypeError` if they are invalid."""
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        return cls(**values)


def shard_folder(shards: Path, name: str) -> Path:
    """Return the folder of the shard ``name``."""
    return shards / name[:DIGITS] / name


def check_shard(folder: Path, settings: ShardSettings) -> tuple[State, ShardRecord | None, str]:
    """Verify a shard: return its state, its record if it is complete, and the problem if it is damaged."""
    if not folder.is_dir():
        return "missing", None, ""
    try:
        record = read_record(folder)
    except CorruptFileError as error:
        return "damaged", None, error.message
    if record.name != folder.name or record.settings != settings.plain():
        return "damaged", None, f"{folder} has other settings"
    for name, file in record.files.items():
        check = check_file(folder / name, file)
        if not check.ok:
            return "damaged", None, f"{folder / name} {check.problem}"
    return "done", record, ""


def read_record(folder: Path) -> ShardRecord:
    """Return the contents of a shard's shard.json, or raise `CorruptFileError`."""
    path = folder / SHARD
    try:
        return disk_records.read_record(path, ShardRecord.from_values, REMEDY, version=None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}; {REMEDY}") from None


class ArrayFile:
    """A ``.npy`` file that grows by appending rows.

    Args:
        path: The file, which must not exist.
        dtype: Type of the numbers.
        width: Numbers per row; none for a one-dimensional array.
    """

    def __init__(self, path: Path, dtype: str, *width: int) -> None:
        self._dtype, self._width, self._count = np.dtype(dtype), width, 0
        self._file = path.open("xb")
        self._write_header()

    def _write_header(self) -> None:
        shape = (self._count, *self._width)
        npy.write_array_header_1_0(self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": shape})

    def append(self, values: np.ndarray) -> None:
        """Append rows."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._count += len(values)

    def close(self) -> None:
        """Write the number of rows into the header, which numpy pads for this purpose."""
        with self._file:
            self._file.seek(0)
            self._write_header()


class ShardWriter:
    """Writes a shard block by block to a temporary folder, which `finish` renames.

    Args:
        folder: Folder of the shard; an existing one is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = self.tokens = self.truncated = 0
        make_directory(folder.parent)
        self._partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
        self._partial.mkdir()
        self._opened = ExitStack()
        self._arrays: dict[str, ArrayFile] = {}
        self._lines: IO[bytes] = self._opened.enter_context((self._partial / ROWS).open("xb"))

    def add(self, lines: Sequence[bytes], positions: Sequence[int], encoded: Encoded) -> None:
        """Append rows."""
        self._lines.writelines(lines)
        self._append("places", "<i4", np.array(positions, dtype=np.int32))
        if encoded.dense is not None:
            self._append("dense", "<f4", encoded.dense.vectors)
        if (multi := encoded.multi) is not None:
            self._append("multi_lengths", "<i8", np.diff(multi.offsets))
            self._append("multi_ids", "<i8", multi.token_ids)
            self._append("multi", "<f4", multi.vectors)
        if (sparse := encoded.sparse) is not None:
            self._append("sparse_lengths", "<i8", np.diff(sparse.offsets))
            self._append("sparse_indices", "<i8", sparse.indices)
            self._append("sparse_values", "<f4", sparse.values)
        self._append("tokens", "<i8", encoded.tokens)
        self._append("truncated", "|b1", encoded.truncated)
        self.rows += len(lines)
        self.tokens += int(encoded.tokens.sum())
        self.truncated += int(encoded.truncated.sum())

    def _append(self, name: str, dtype: str, values: np.ndarray) -> None:
        if name not in self._arrays:
            self._arrays[name] = ArrayFile(self._partial / f"{name}.npy", dtype, *values.shape[1:])
            self._opened.callback(self._arrays[name].close)
        self._arrays[name].append(values)

    def finish(self, settings: ShardSettings, documents: int, refused: Sequence[Mapping[str, Any]]) -> ShardRecord:
        """Sync every file to disk, then rename the folder."""
        self._opened.close()
        files = {path.name: record_of(path) for path in sorted(self._partial.iterdir())}
        counts = (documents, self.rows, self.tokens, self.truncated)
        record = ShardRecord(self.folder.name, settings.plain(), *counts, refused, files)
        (self._partial / SHARD).write_bytes(record.to_json().encode())
        for path in [*self._partial.iterdir(), self._partial]:
            sync(path)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._partial.rename(self.folder)
        sync(self.folder.parent)
        return record

    def abort(self) -> None:
        """Delete the temporary folder, if the shard is not finished."""
        with suppress(OSError):  # the disk is full; the files are deleted anyway
            self._opened.close()
        shutil.rmtree(self._partial, ignore_errors=True)
