"""Hard links to files of a collection, and the check that the linked or copied sources are intact."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embedserve.errors import CorruptFileError
from indexing.collections.catalog import all_files
from indexing.collections.manifest import Manifest
from indexing.storage.checksums import REMEDY, FileRecord, check_file
from indexing.storage.files import sync

CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def link_folder(folder: Path, target: Path) -> None:
    """Create the folder ``target`` with the files of ``folder``, linked or copied, and sync it."""
    target.mkdir()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            link_folder(path, target / path.name)
        else:
            link_file(path, target / path.name)
    sync(target)


def link_file(path: Path, target: Path) -> None:
    """Hard-link an immutable file; write a synced copy if the file system does not support links."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(path, target)
        sync(target)


@contextmanager
def unchanged(
    files: Iterable[tuple[Path, FileRecord]], remedy: str = REMEDY, field: str = "collection"
) -> Iterator[None]:
    """Verify the sources of a copy after the block; publish the copy only if this does not raise.

    Files can change on disk after they were opened. The copy gets new digests, so without this check the damage would
    count as valid. If the block itself fails, damage of a source is reported instead of the error. Costs one read of
    the sources, which are in the page cache after the block.

    Args:
        files: Path and record of each source; an iterator is read only after the block.
        remedy: End of the error message.
        field: Field of the error.

    Raises:
        CorruptFileError: A source is missing, damaged or of a wrong size.
    """
    try:
        yield
    except Exception:  # damaged values can raise anything
        check_sources(files, remedy, field)
        raise
    check_sources(files, remedy, field)


def check_sources(files: Iterable[tuple[Path, FileRecord]], remedy: str, field: str) -> None:
    """Raise `CorruptFileError` for the first file that does not match its record."""
    for path, record in files:
        check = check_file(path, record)
        if not check.ok:
            raise CorruptFileError(f"{path} {check.problem}; {remedy}", field=field)


def sources_of(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, FileRecord]]:
    """Yield path and record of every file of ``manifest`` except the log, for `unchanged`."""
    return ((directory / name, record) for name, record in all_files(directory, manifest))
