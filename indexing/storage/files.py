"""Files that survive a crash: synced, digested, replaced whole."""

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
    """Return once what was written to a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make ``path`` and the directories above it that are missing, each of their names safe on the disk."""
    missing = [place for place in path.parents if not place.exists()]
    for place in [*reversed(missing), path]:
        place.mkdir(exist_ok=True)
        sync(place.parent)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to that takes the place of ``path`` once the block ends.

    At every moment and after any crash ``path`` holds all of the old or all of the new: the bytes go to a new file of
    a random name in the same folder, which is synced and then renamed. Where the block or the disk fails, ``path``
    is as it was and the new file is removed. ``path`` must be a regular file or none, not a pipe or a device.

    Raises:
        OSError: The new file cannot be made or written; ``path`` is as it was.
        EmbedserveError: ``path`` was replaced, but the disk did not confirm it.

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
            f"{path} was replaced by the new one, but the disk did not confirm it ({error.strerror or error}): after a "
            "power cut it may be the old one again; check the disk, then repeat the command"
        ) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def disk_advice(error: OSError | sqlite3.Error) -> str:
    """Return what a person can do about a disk that refused to be written."""
    reason = error.errno if isinstance(error, OSError) else getattr(error, "sqlite_errorcode", None)
    full = (errno.ENOSPC, errno.EDQUOT) if isinstance(error, OSError) else (sqlite3.SQLITE_FULL,)
    closed = (errno.EACCES, errno.EPERM, errno.EROFS) if isinstance(error, OSError) else (sqlite3.SQLITE_READONLY,)
    if reason in full:
        return "free some space or choose another --data-dir"
    if reason in closed:
        return "let this user write there or choose another --data-dir"
    return "check that place and its disk or choose another --data-dir"


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what can go wrong with a disk into an error that says what was saved and what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise EmbedserveError(
            f"cannot write to {directory}: {error}; {disk_advice(error)}; what was there before is unchanged"
        ) from error


@contextmanager
def write_lock(directory: Path, name: str = "") -> Iterator[None]:
    """Hold the right to write to the collection in ``directory``; the system gives it back if the process dies.

    ``name`` is what a message calls a folder that is no collection.

    Raises:
        BusyError: Another writer holds it.
        EmbedserveError: The directory cannot be written.
    """
    file = take_lock(directory, name)
    try:
        yield
    finally:
        file.close()


def is_lock_of(file: IO[bytes], directory: Path) -> bool:
    """Say whether an open lock file is still the one in ``directory``: it is not once the folder was dropped."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), (directory / ".lock").stat())
    except FileNotFoundError:
        return False


def file_bytes(path: Path) -> int:
    """Return the size of a file; 0 where it does not exist, as a writer may remove it at any moment."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; those that a writer removes meanwhile count 0."""
    return sum(file_bytes(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def take_lock(directory: Path, name: str = "") -> IO[bytes]:
    """Return a file that holds the right to write to ``directory`` until it is closed; else as `write_lock`."""
    path = directory / ".lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise EmbedserveError(
            f"cannot write to {directory}: {error.strerror}; {disk_advice(error)}", field="collection"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = is_lock_of(file, directory)  # else the folder was dropped meanwhile
    except BlockingIOError:
        held = False
    except OSError as error:
        file.close()
        raise EmbedserveError(
            f"cannot lock {directory}: {error.strerror}; writing needs a file system with locks, some network "
            "mounts have none: choose another --data-dir",
            field="collection",
        ) from error
    if not held:
        file.close()
        name = name or f"collection {directory.name!r}"
        message = f"{name} is being written to by another build or program; wait for it to end, or stop it"
        raise BusyError(message, field="collection")
    return file


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock on the file ``path``, which is made where it is missing, once nobody else does."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
