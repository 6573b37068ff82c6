"""What is written down of a file, and whether the file still is so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from embedserve.errors import CorruptFileError
from indexing.storage.files import digest

REMEDY = "rebuild it with `embedserve index build`, or restore it from a backup"
T = TypeVar("T")


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when it was written: its size in bytes and its BLAKE2b digest in hex."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class FileCheck:
    """What became of a file: ``problem`` is empty where it is as it was written."""

    name: str
    bytes: int
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file is as it was written."""
        return not self.problem


def record_of(path: Path) -> FileRecord:
    """Return size and digest of a file."""
    return FileRecord(path.stat().st_size, digest(path))


def inode_of(path: Path) -> int:
    """Return the number of the file that has this name now, 0 where there is none; a replaced file has another."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the BLAKE2b digest of plain values, independent of the order of keys."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=32).hexdigest()


def reason(error: Exception) -> str:
    """Say in words why a file of JSON could not be read."""
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"damaged: {error}"
    if type(error) is ValueError:
        return str(error)
    return f"damaged: {type(error).__name__} {error}"


def read_text(path: Path, parse: Callable[[str], T], remedy: str = REMEDY) -> T:
    """Return what ``parse`` makes of a file's text.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such file.
        CorruptFileError: It cannot be read, or ``parse`` raised; with ``remedy``.
    """
    try:
        return parse(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is {reason(error)}; {remedy}") from None


def check_file(path: Path, record: FileRecord, name: str = "") -> FileCheck:
    """Compare one file with its record; ``name`` is what the result calls it."""
    name = name or f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return FileCheck(name, size, f"has {size} bytes instead of {record.bytes}")
        if digest(path) != record.blake2b:
            return FileCheck(name, size, "is damaged: its digest does not match")
    except FileNotFoundError:
        return FileCheck(name, 0, "is missing")
    except OSError as error:
        return FileCheck(name, 0, f"cannot be read: {error.strerror}")
    return FileCheck(name, size)
