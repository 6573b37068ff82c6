"""A folder as a tar archive of known size, built while it is sent."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1024 * 1024
BLOCK = tarfile.BLOCKSIZE


class TarStream:
    """The regular files of a folder as the chunks of a tar archive; the folder must not change while it is read.

    Args:
        folder: The folder.
        name: Name of the folder in the archive.
    """

    def __init__(self, folder: Path, name: str) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self._members = [(path, path.stat(), f"{name}/{path.relative_to(folder).as_posix()}") for path in paths]
        self._headers = [_header(inside, status.st_size, status.st_mtime) for _, status, inside in self._members]

    @property
    def size(self) -> int:
        """Size of the archive in bytes."""
        contents = sum(-(-status.st_size // BLOCK) * BLOCK for _, status, _ in self._members)
        return sum(map(len, self._headers)) + contents + 2 * BLOCK

    def __iter__(self) -> Iterator[bytes]:
        for header, (path, status, _) in zip(self._headers, self._members, strict=True):
            yield header
            left = status.st_size
            with path.open("rb") as file:
                while left:
                    data = file.read(min(CHUNK, left))
                    if not data:
                        raise OSError(f"{path} shrank while it was sent")
                    left -= len(data)
                    yield data
            yield bytes(-status.st_size % BLOCK)
        yield bytes(2 * BLOCK)


def _header(name: str, size: int, changed: float) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(changed), 0o644
    return info.tobuf(tarfile.PAX_FORMAT)
