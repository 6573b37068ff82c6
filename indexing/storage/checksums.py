"""Sizes and digests of files, and their verification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedserve.disk_records import file_digest

REMEDY = "rebuild it with `embedserve index build`, or restore it from a backup"


@dataclass(frozen=True)
class FileRecord:
    """The size in bytes of a file and its BLAKE2b digest in hex, recorded when it was written."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class FileCheck:
    """The result of a file's verification; ``problem`` is empty if the file is intact."""

    name: str
    bytes: int
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file is intact."""
        return not self.problem


def record_of(path: Path) -> FileRecord:
    """Return the size and the digest of a file."""
    return FileRecord(path.stat().st_size, file_digest(path))


def inode_of(path: Path) -> int:
    """Return the inode of a file, which changes when the file is replaced; 0 if it does not exist."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def check_file(path: Path, record: FileRecord, name: str = "") -> FileCheck:
    """Compare one file with its record; ``name`` is its name in the result."""
    name = name or f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return FileCheck(name, size, f"has {size} bytes instead of {record.bytes}")
        if file_digest(path) != record.blake2b:
            return FileCheck(name, size, "is damaged: its digest does not match")
    except FileNotFoundError:
        return FileCheck(name, 0, "is missing")
    except OSError as error:
        return FileCheck(name, 0, f"cannot be read: {error.strerror}")
    return FileCheck(name, size)
