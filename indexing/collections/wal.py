"""The write-ahead log: what was acknowledged and is in no segment yet.

A file header (magic, the name's number, the first sequence number, CRC-32), then frames: a header (magic, sequence
number, how many numbers it takes, length, CRC-32 of the payload, CRC-32 of the header itself) and the payload. A frame
is written and synced before the next one begins. So a bad frame with a valid one behind it was whole once: the file is
damaged. A bad frame with nothing behind it may be one that was never acknowledged, and is cut off.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from embedserve.errors import CorruptFileError, EmbedserveError, InputError
from indexing.storage.files import disk_advice, sync

logger = logging.getLogger(__name__)

FILE_MAGIC, FRAME_MAGIC = b"\xf5embwal\x01", b"\xff\xf5W\n"  # no UTF-8 text holds these
FILE_HEADER = struct.Struct("<8sQQ")
FRAME_HEADER = struct.Struct("<4sQIII")
CRC = struct.Struct("<I")
FILE_START = FILE_HEADER.size + CRC.size
PAYLOAD_START = FRAME_HEADER.size + CRC.size
LARGEST = 2**31
REMEDY = "restore the collection from a snapshot, or rebuild it; the records before are intact"


@dataclass(frozen=True)
class Frame:
    """One atomic write: ``span`` sequence numbers from ``sequence`` on."""

    sequence: int
    span: int
    payload: bytes


def number_of(path: Path) -> int:
    """Return the number in the name of a log, ``wal-<16 hex>.log``."""
    return int(path.stem.removeprefix("wal-"), 16)


def create_wal(path: Path, sequence: int) -> None:
    """Write and sync an empty log that starts with ``sequence``; the caller syncs the folder."""
    head = FILE_HEADER.pack(FILE_MAGIC, number_of(path), sequence)
    with path.open("xb") as file:
        file.write(head + CRC.pack(zlib.crc32(head)))
        file.flush()
        os.fsync(file.fileno())


def read_wal(path: Path, sequence: int, start: int = 0) -> tuple[list[Frame], int]:
    """Return the valid frames of a log from byte ``start`` on, and the end of the last one in bytes.

    Args:
        path: The log.
        sequence: The expected sequence number at ``start``.
        start: 0 for the whole file, or the end that an earlier call returned.

    Raises:
        CorruptFileError: The log is missing, of another collection, or damaged before its end.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(start)
            data = file.read()
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}; {REMEDY}", field="collection") from None
    if size < start:
        message = f"{path} is shorter than the {start} bytes read earlier; {REMEDY}"
        raise CorruptFileError(message, field="collection")
    position = 0
    if start == 0:
        _check_file_header(path, data, sequence)
        position = FILE_START
    frames: list[Frame] = []
    while position < len(data):
        frame = _frame_at(data, position)
        if frame is None:
            if _damaged(data, position):
                raise CorruptFileError(
                    f"{path} is damaged at byte {start + position}: a record is invalid; {REMEDY}",
                    field="collection",
                )
            break
        if frame.sequence != sequence:
            raise CorruptFileError(
                f"{path} is damaged at byte {start + position}: record {sequence} is missing; {REMEDY}",
                field="collection",
            )
        frames.append(frame)
        sequence += frame.span
        position += PAYLOAD_START + len(frame.payload)
    return frames, start + position


def _check_file_header(path: Path, data: bytes, sequence: int) -> None:
    head = data[: FILE_HEADER.size]
    whole = len(data) >= FILE_START and data[FILE_HEADER.size : FILE_START] == CRC.pack(zlib.crc32(head))
    if not whole or head != FILE_HEADER.pack(FILE_MAGIC, number_of(path), sequence):
        what = "damaged at byte 0" if not whole else "the log of another collection or version"
        raise CorruptFileError(f"{path} is {what}; {REMEDY}", field="collection")


def _header_at(data: bytes, position: int) -> tuple[int, int, int, int] | None:
    """Return sequence, span, length and payload CRC of the frame header at ``position``; None if it is invalid."""
    head = data[position : position + FRAME_HEADER.size]
    crc = data[position + FRAME_HEADER.size : position + PAYLOAD_START]
    if len(crc) < CRC.size or crc != CRC.pack(zlib.crc32(head)) or not head.startswith(FRAME_MAGIC):
        return None
    return FRAME_HEADER.unpack(head)[1:]


def _frame_at(data: bytes, position: int) -> Frame | None:
    header = _header_at(data, position)
    if header is None:
        return None
    sequence, span, length, crc = header
    payload = data[position + PAYLOAD_START : position + PAYLOAD_START + length]
    return Frame(sequence, span, payload) if len(payload) == length and zlib.crc32(payload) == crc else None


def _damaged(data: bytes, position: int) -> bool:
    """Return whether data after the bad frame at ``position`` proves that the frame was complete once."""
    header = _header_at(data, position)
    if header is not None:
        return position + PAYLOAD_START + header[2] < len(data)
    later = data.find(FRAME_MAGIC, position + 1)
    while later >= 0:
        if _frame_at(data, later) is not None:
            return True
        later = data.find(FRAME_MAGIC, later + 1)
    return False


class WalWriter:
    """Appends frames to a log; what `append` returned from is on the disk.

    Args:
        path: A log that was read by `read_wal`.
        size: End of its last valid frame; a later, unacknowledged frame is cut off.

    Raises:
        OSError: The log cannot be written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.failure = ""
        self._file = os.open(path, os.O_RDWR)
        torn = os.fstat(self._file).st_size - size
        if torn:
            logger.warning("log=%s offset=%d bytes=%d: cutting off an unfinished record", path, size, torn)
            os.ftruncate(self._file, size)
            os.fsync(self._file)

    def append(self, sequence: int, span: int, payload: bytes) -> None:
        """Write one frame and sync it.

        Raises:
            InputError: The payload is too large for one frame.
            EmbedserveError: The disk is full or failing; the frame was not written. If the content of the disk is
                uncertain, further writes fail until the collection is opened again.
        """
        if self.failure:
            raise EmbedserveError(f"{self.path}: {self.failure}; open the collection again", field="collection")
        if len(payload) >= LARGEST:
            message = f"one write holds {len(payload):,} bytes, at most {LARGEST:,}; send fewer documents per request"
            raise InputError(message, field="documents")
        head = FRAME_HEADER.pack(FRAME_MAGIC, sequence, span, len(payload), zlib.crc32(payload))
        try:
            self._write([head + CRC.pack(zlib.crc32(head)), payload])
        except BaseException as error:  # Ctrl-C too: half a frame must not stay
            self._cut_back()
            if not isinstance(error, OSError):
                raise
            raise EmbedserveError(
                f"cannot write to {self.path}: {error}; {disk_advice(error)}; nothing was written",
                field="collection",
            ) from error
        try:
            os.fsync(self._file)
        except BaseException as error:
            self._cut_back()  # otherwise a reopen would accept this frame as durable and lose later ones after a gap
            self.failure = f"an earlier write may not be on the disk ({error})"
            if not isinstance(error, OSError):
                raise
            raise EmbedserveError(
                f"the disk did not confirm a write to {self.path}: {error}; check it, then open the collection again",
                field="collection",
            ) from error
        self.size += len(head) + CRC.size + len(payload)

    def _write(self, parts: Sequence[bytes]) -> None:
        position = self.size
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.pwrite(self._file, view, position)
                view, position = view[written:], position + written

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._file, self.size)
            os.fsync(self._file)  # after a shorter record, the rest of this one would look like damage
        except OSError as error:
            self.failure = f"half a record could not be removed ({error})"

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1


def new_wal(directory: Path, name: str, sequence: int) -> Path:
    """Create and sync the log ``name`` in ``directory``; return its path."""
    path = directory / name
    create_wal(path, sequence)
    sync(directory)
    return path
