"""Search cursors: encode the rows of earlier pages, so that the next page continues with the best of the rest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from embedserve.errors import InputError

DIGEST_BYTES = 8
MAX_BYTES = 64 * 1024  # of a decompressed cursor


def encode_cursor(rows: Sequence[int], identity: str) -> str:
    """Return the cursor of the next page.

    Args:
        rows: Sequence numbers of the hits of all pages so far.
        identity: Identifies the search; a cursor of another search is rejected.
    """
    steps = np.diff(np.sort(np.array(rows, dtype=np.int64)), prepend=0)
    packed = zlib.compress(_digest(identity) + steps.astype("<i8").tobytes(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(cursor: str, identity: str) -> tuple[int, ...]:
    """Return the rows of `encode_cursor`.

    Raises:
        InputError: The cursor is invalid or belongs to another search.
    """
    try:
        if not cursor.isascii():
            raise ValueError
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, MAX_BYTES)
        if not unpacker.eof or len(data) < DIGEST_BYTES:
            raise ValueError
        steps = np.frombuffer(data[DIGEST_BYTES:], dtype="<i8")
    except (ValueError, binascii.Error, zlib.error):
        raise InputError(
            "cursor must be the next_cursor of an earlier page, or '*' for the first page", field="cursor"
        ) from None
    if data[:DIGEST_BYTES] != _digest(identity):
        message = "cursor belongs to another search, or the collection was rebuilt; start again with '*'"
        raise InputError(message, field="cursor")
    return tuple(np.cumsum(steps).tolist())


def _digest(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
