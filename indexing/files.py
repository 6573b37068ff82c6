"""Files that survive a crash: synced, digested, replaced whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedserve.errors import EmbedserveError


def digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def sync(path: Path) -> None:
    """Return once what was written to a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds, at every moment and after any crash, all of the old or all of the new."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def build_lock(directory: Path) -> Iterator[None]:
    """Hold the right to build in ``directory``; the system gives it back if the process dies.

    Raises:
        EmbedserveError: Another build holds it, or the directory cannot be written.
    """
    try:
        file = (directory / ".lock").open("ab")
    except OSError as error:
        raise EmbedserveError(f"cannot build in {directory}: {error.strerror}", field="collection") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbedserveError(
                f"another build of collection {directory.name!r} is running; wait for it to end, or stop it",
                field="collection",
            ) from None
        yield
