"""Cursors of searches: what the pages before have shown, so that the next page is the best of the rest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from embedserve.errors import InputError

DIGEST_BYTES = 8
MOST_BYTES = 64 * 1024  # of a cursor, unpacked


def encode_cursor(rows: Sequence[int], asked: str) -> str:
    """Return a cursor for who has seen ``rows``, numbers in the order of writing.

    Args:
        rows: What all pages so far have shown.
        asked: What the search was, so that a cursor of another one is refused.
    """
    steps = np.diff(np.sort(np.array(rows, dtype=np.int64)), prepend=0)
    packed = zlib.compress(_digest(asked) + steps.astype("<i8").tobytes(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(cursor: str, asked: str) -> tuple[int, ...]:
    """Return the rows that `encode_cursor` was given.

    Raises:
        InputError: It is none, or one of another search.
    """
    try:
        if not cursor.isascii():
            raise ValueError
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, MOST_BYTES)
        if not unpacker.eof or len(data) < DIGEST_BYTES:
            raise ValueError
        steps = np.frombuffer(data[DIGEST_BYTES:], dtype="<i8")
    except (ValueError, binascii.Error, zlib.error):
        raise InputError("cursor must be the next_cursor of an earlier page, or '*' to begin", field="cursor") from None
    if data[:DIGEST_BYTES] != _digest(asked):
        message = "cursor is of another search, or the collection was built anew since; begin again with '*'"
        raise InputError(message, field="cursor")
    return tuple(np.cumsum(steps).tolist())


def _digest(asked: str) -> bytes:
    return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
