"""The collections in `<data_dir>/collections/<name>/`: names, manifests and verification."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from embedserve.errors import CorruptFileError, InputError, NotFoundError, did_you_mean
from indexing.collections.manifest import MANIFEST, SEGMENTS, Manifest, read_manifest
from indexing.collections.wal import read_wal
from indexing.segments.segment import read_segment
from indexing.storage.checksums import REMEDY, FileCheck, FileRecord, check_file
from indexing.storage.files import file_bytes

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid name of a collection, else raise `InputError`."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a valid collection name; use 1 to 64 of a-z, 0-9, '-' and '_', "
            "beginning with a letter or digit",
            field="collection",
        )
    return name


def collection_path(data_dir: Path | str, name: str) -> Path:
    """Return the directory of a collection, which need not exist; it is always inside ``data_dir``."""
    return Path(data_dir) / "collections" / check_name(name)


def list_collections(data_dir: Path | str) -> list[str]:
    """Return the names of the collections in ``data_dir``, sorted; unfinished builds are not listed."""
    return names_in(Path(data_dir) / "collections")


def names_in(parent: Path) -> list[str]:
    """Return the names of the collections in the folder ``parent``, sorted."""
    return sorted(path.parent.name for path in parent.glob(f"*/{MANIFEST}") if NAME.fullmatch(path.parent.name))


def unknown_collection(directory: Path) -> NotFoundError:
    """Return the error for a directory without a collection, with the nearest name and all existing ones."""
    names = [
        name for name in names_in(directory.parent) if name != directory.name
    ]  # another process may have created it just now
    hint = did_you_mean(directory.name, names)
    known = f"collections: {', '.join(names)}" if names else "there are none yet; run `embedserve index build`"
    return NotFoundError(f"collection {directory.name!r} does not exist; {hint}{known}", field="collection")


def published(directory: Path) -> Manifest:
    """Return the manifest of a collection, or raise `NotFoundError` with the names of all collections."""
    try:
        return read_manifest(directory)
    except NotFoundError:
        raise unknown_collection(directory) from None


def read_published(directory: Path, read: Callable[[Manifest], T]) -> T:
    """Return ``read(manifest)``; retry if a writer published a new manifest and removed files during the read.

    Raises:
        NotFoundError: No such collection.
        CorruptFileError: ``read`` failed and the manifest did not change.
    """
    manifest = published(directory)
    while True:
        try:
            return read(manifest)
        except (CorruptFileError, NotFoundError):
            newer = published(directory)
            if newer.version == manifest.version:
                raise
            manifest = newer


def verify(directory: Path | str) -> list[FileCheck]:
    """Verify the digest of every file of a collection; return a result per file, the manifest first.

    If a writer publishes a new manifest during the check, the files of that one are read.

    Raises:
        NotFoundError: No such collection.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    try:
        published(directory)
    except CorruptFileError as error:
        return [FileCheck(MANIFEST, file_bytes(path), error.message)]
    while True:
        version, checks = read_published(directory, lambda latest: (latest.version, check_files(directory, latest)))
        if all(check.ok for check in checks) or published(directory).version == version:
            return [FileCheck(MANIFEST, file_bytes(path)), *checks]


def total_bytes(directory: Path, manifest: Manifest) -> int:
    """Return the total size of the files in bytes; `CorruptFileError` if one is missing or of a wrong size."""
    total = 0
    for name, record in all_files(directory, manifest):
        path = directory / name
        size = file_bytes(path) if path.is_file() else None
        if size != record.bytes:
            problem = "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
            raise CorruptFileError(f"{path} {problem}; {REMEDY}", field="collection")
        total += record.bytes
    return total


def all_files(directory: Path, manifest: Manifest) -> Iterator[tuple[str, FileRecord]]:
    """Yield path and record of every file except the manifest and the log."""
    for name, record in manifest.files():
        yield name, record
        folder = (directory / name).parent
        if folder.parent.name == SEGMENTS:
            files = read_segment(folder).files
            yield from ((f"{SEGMENTS}/{folder.name}/{name}", file) for name, file in files.items())


def check_files(directory: Path, manifest: Manifest) -> list[FileCheck]:
    """Verify every file that ``manifest`` names, directly or in a segment, and its log."""
    named = list(manifest.files())
    checks = [check_file(directory / name, record, name) for name, record in named]
    if all(check.ok for check in checks):
        inside = list(all_files(directory, manifest))
        checks = [check_file(directory / name, record, name) for name, record in inside]
    return [*checks, check_log(directory, manifest)]


def check_log(directory: Path, manifest: Manifest) -> FileCheck:
    """Verify the log; an unfinished frame at its end is not an error."""
    path = directory / manifest.wal
    size = file_bytes(path)
    try:
        read_wal(path, manifest.sequence)
    except CorruptFileError as error:
        return FileCheck(path.name, size, error.message.removeprefix(f"{path} "))
    return FileCheck(path.name, size)
