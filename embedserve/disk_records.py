"""Files that are replaced atomically, their digests, and JSON records that carry a digest of their own values."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from embedserve.errors import CorruptFileError

T = TypeVar("T")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder and rename it to ``path`` at the end.

    Readers see the old file or the new one, never a partial one. If the block fails, ``path`` is unchanged and the
    temporary file is removed. Nothing is synced: see `indexing.storage.files.replacing` for files that must survive a
    power cut.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def record_digest(values: Mapping[str, Any], size: int = 32) -> str:
    """Return the BLAKE2b digest of ``size`` bytes, in hex, of a record without its key ``digest``, in any key order."""
    content = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=size).hexdigest()


def record_text(values: Mapping[str, Any], *, indent: int = 2, sort_keys: bool = False, digest_size: int = 32) -> str:
    """Return ``values`` as JSON text with their digest."""
    record = {**values, "digest": record_digest(values, digest_size)}
    return json.dumps(record, indent=indent, sort_keys=sort_keys) + "\n"


def parse_record(text: str, version: int | None, digest_size: int = 32) -> dict[str, Any]:
    """Return the values of `record_text`, without the digest.

    Args:
        text: The JSON text.
        version: The required value of the key ``format``; None for records without one.
        digest_size: Bytes of the digest.

    Raises:
        ValueError: Not a JSON object, another format version, or another digest.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    if version is not None and values.get("format") != version:
        raise ValueError(f"of format {values.get('format')!r}, this release reads format {version}")
    if values.pop("digest", None) != record_digest(values, digest_size):
        raise ValueError("damaged: its digest does not match")
    return values


def read_record(
    path: Path, parse: Callable[[dict[str, Any]], T], remedy: str, *, version: int | None, digest_size: int = 32
) -> T:
    """Return ``parse`` of the values of a JSON record; the other arguments are those of `parse_record`.

    Raises:
        FileNotFoundError, NotADirectoryError: The file does not exist.
        CorruptFileError: The file cannot be read, is damaged or has another format version, or ``parse`` rejects its
            values; the message ends with ``remedy``.
    """
    try:
        return parse(parse_record(path.read_bytes().decode(), version, digest_size))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is {_reason(error)}; {remedy}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"damaged: {error}"
    if type(error) is ValueError:
        return str(error)
    return f"damaged: {type(error).__name__} {error}"
