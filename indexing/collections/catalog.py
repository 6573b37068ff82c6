"""Where collections live: `<data_dir>/collections/<name>/`, and what they may be called."""

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
    """Return ``name`` if a collection may be called that, else raise `InputError`."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a collection; use 1 to 64 of a-z, 0-9, '-' and '_', "
            "beginning with a letter or digit",
            field="collection",
        )
    return name


def collection_path(data_dir: Path | str, name: str) -> Path:
    """Return the directory of the collection ``name``, which need not exist; never one outside of ``data_dir``."""
    return Path(data_dir) / "collections" / check_name(name)


def list_collections(data_dir: Path | str) -> list[str]:
    """Return the names of the collections in ``data_dir``, sorted; what was never finished is left out."""
    return names_in(Path(data_dir) / "collections")


def names_in(parent: Path) -> list[str]:
    """Return the names of the collections that lie side by side in ``parent``, sorted."""
    return sorted(path.parent.name for path in parent.glob(f"*/{MANIFEST}") if NAME.fullmatch(path.parent.name))


def unknown_collection(directory: Path) -> NotFoundError:
    """Return the error for a directory that is no collection: the nearest name, and all there are."""
    names = [name for name in names_in(directory.parent) if name != directory.name]  # it may have been created just now
    hint = did_you_mean(directory.name, names)
    known = f"there are {', '.join(names)}" if names else "there are none yet; make one with `embedserve index build`"
    return NotFoundError(f"there is no collection {directory.name!r}; {hint}{known}", field="collection")


def published(directory: Path) -> Manifest:
    """Return the manifest of a collection, or raise `NotFoundError` naming those there are."""
    try:
        return read_manifest(directory)
    except NotFoundError:
        raise unknown_collection(directory) from None


def read_published(directory: Path, read: Callable[[Manifest], T]) -> T:
    """Return what ``read`` makes of the manifest; read the new one where a writer replaced its files meanwhile.

    Raises:
        NotFoundError: There is no collection.
        CorruptFileError: Of ``read``, and the manifest is still the same.
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
    """Read every byte of the collection in ``directory`` and return one result for each file, the manifest first.

    Where a writer replaced files meanwhile, those of the new manifest are read.

    Raises:
        NotFoundError: There is no collection.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    try:
        published(directory)
    except CorruptFileError as error:
        return [FileCheck(MANIFEST, file_bytes(path), error.message)]
    while True:
        version, checks = read_published(directory, lambda found: (found.version, check_files(directory, found)))
        if all(check.ok for check in checks) or published(directory).version == version:
            return [FileCheck(MANIFEST, file_bytes(path)), *checks]


def total_bytes(directory: Path, manifest: Manifest) -> int:
    """Return the bytes of a collection's files; `CorruptFileError` where one is missing or of another size."""
    total = 0
    for name, record in all_files(directory, manifest):
        path = directory / name
        size = file_bytes(path) if path.is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
            raise CorruptFileError(f"{path} {found}; {REMEDY}", field="collection")
        total += record.bytes
    return total


def all_files(directory: Path, manifest: Manifest) -> Iterator[tuple[str, FileRecord]]:
    """Yield every file but the manifest and the log, by its path in ``directory``."""
    for name, record in manifest.files():
        yield name, record
        folder = (directory / name).parent
        if folder.parent.name == SEGMENTS:
            inside = read_segment(folder).files
            yield from ((f"{SEGMENTS}/{folder.name}/{name}", found) for name, found in inside.items())


def check_files(directory: Path, manifest: Manifest) -> list[FileCheck]:
    """Read every file that ``manifest`` names, directly or by way of a segment, and return what became of each."""
    named = list(manifest.files())
    checks = [check_file(directory / name, record, name) for name, record in named]
    if all(check.ok for check in checks):
        inside = list(all_files(directory, manifest))
        checks = [check_file(directory / name, record, name) for name, record in inside]
    return [*checks, check_log(directory, manifest)]


def check_log(directory: Path, manifest: Manifest) -> FileCheck:
    """Read the log and return what became of it; an unfinished record at its end is as it may be."""
    path = directory / manifest.wal
    size = file_bytes(path)
    try:
        read_wal(path, manifest.sequence)
    except CorruptFileError as error:
        return FileCheck(path.name, size, error.message.removeprefix(f"{path} "))
    return FileCheck(path.name, size)
