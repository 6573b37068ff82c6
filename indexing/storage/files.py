"""Crash-safe files: synced writes, atomic replacement and write locks."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from embedserve.disk_records import atomic_path
from embedserve.errors import BusyError, EmbedserveError


def sync(path: Path) -> None:
    """Sync a file's data, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create ``path`` and its missing parents, and sync each new directory entry."""
    missing = [parent for parent in path.parents if not parent.exists()]
    for directory in [*reversed(missing), path]:
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which atomically replaces ``path`` at the end of the block.

    After a crash at any moment, ``path`` holds the complete old or the complete new content: the data go to a temporary
    file in the same folder, which is synced and then renamed. If the block or the disk fails, ``path`` is unchanged and
    the temporary file is removed. ``path`` must not be a pipe or a device.

    Raises:
        OSError: The temporary file cannot be written; ``path`` is unchanged.
        EmbedserveError: ``path`` was replaced, but syncing the directory failed.

    >>> with replacing(Path("vectors.npy")) as file:  # doctest: +SKIP
    ...     np.save(file, vectors)
    """
    with atomic_path(path) as partial, partial.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    try:
        sync(path.parent)
    except OSError as error:
        raise EmbedserveError(
            f"{path} was replaced, but the disk did not confirm it ({error.strerror or error}): a power "
            "cut may restore the old file; check the disk, then repeat the command"
        ) from error


def replace_file(path: Path, data: bytes) -> None:
    """Atomically replace the content of ``path`` with ``data``; the errors are those of `replacing`."""
    with replacing(path) as file:
        file.write(data)


def disk_advice(error: OSError | sqlite3.Error) -> str:
    """Return what the user can do about a failed write."""
    reason = error.errno if isinstance(error, OSError) else getattr(error, "sqlite_errorcode", None)
    full = (errno.ENOSPC, errno.EDQUOT) if isinstance(error, OSError) else (sqlite3.SQLITE_FULL,)
    closed = (errno.EACCES, errno.EPERM, errno.EROFS) if isinstance(error, OSError) else (sqlite3.SQLITE_READONLY,)
    if reason in full:
        return "free some disk space or choose another --data-dir"
    if reason in closed:
        return "give this user write permission or choose another --data-dir"
    return "check the directory and its disk or choose another --data-dir"


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Convert errors of the disk to `EmbedserveError`, with advice."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise EmbedserveError(
            f"cannot write to {directory}: {error}; {disk_advice(error)}; existing data are unchanged"
        ) from error


@contextmanager
def write_lock(directory: Path, name: str = "") -> Iterator[None]:
    """Hold the write lock of the collection in ``directory``; the system releases it if the process dies.

    ``name`` is used in messages if the folder is not a collection.

    Raises:
        BusyError: Another writer holds the lock.
        EmbedserveError: The directory cannot be written.
    """
    file = take_lock(directory, name)
    try:
        yield
    finally:
        file.close()


def is_lock_of(file: IO[bytes], directory: Path) -> bool:
    """Return whether an open lock file is still the one in ``directory``; it is not after the folder was removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), (directory / ".lock").stat())
    except FileNotFoundError:
        return False


def file_bytes(path: Path) -> int:
    """Return the size of a file; 0 if it does not exist, because a writer may remove it at any moment."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; files removed concurrently count 0."""
    return sum(file_bytes(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def take_lock(directory: Path, name: str = "") -> IO[bytes]:
    """Return a file that holds the lock of ``directory`` until it is closed; the errors are those of `write_lock`."""
    path = directory / ".lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise EmbedserveError(
            f"cannot write to {directory}: {error.strerror}; {disk_advice(error)}", field="collection"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = is_lock_of(file, directory)  # false if the folder was removed in the meantime
    except BlockingIOError:
        held = False
    except OSError as error:
        file.close()
        raise EmbedserveError(
            f"cannot lock {directory}: {error.strerror}; writing needs a file system with locks, which some network "
            "mounts lack: choose another --data-dir",
            field="collection",
        ) from error
    if not held:
        file.close()
        name = name or f"collection {directory.name!r}"
        message = f"{name} is being written to by another process; wait for it to end, or stop it"
        raise BusyError(message, field="collection")
    return file


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Wait for the lock on the file ``path``, created if missing, and hold it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
