"""Reads lines of text files, optionally compressed; invalid UTF-8 in a line does not end the reading."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

from embedserve.data.records import BadRecord
from embedserve.errors import InputError

COMPRESSED = (".gz", ".zst")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, optionally compressed; raise `InputError` if compressed data is truncated or damaged."""
    kind = path.suffix.lower()
    with path.open("rb") as file:
        if kind == ".zst":
            stream: Any = zstd_stream(file)
        else:
            stream = gzip.GzipFile(fileobj=file) if kind == ".gz" else nullcontext(file)
        with stream as plain:
            try:
                yield cast(IO[bytes], plain)
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise InputError(f"{path} is not a complete gzip file: {error}", field="source") from None
            except OSError as error:
                if kind != ".zst" or error.errno is not None:  # errors of the operating system have a number
                    raise
                raise InputError(f"{path} is not a complete zstd file: {error}", field="source") from None


def zstd_stream(file: IO[bytes]) -> IO[bytes]:
    """Return the decompressed stream of a zstd file of one or several frames."""
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))


def decoded_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream with their line ends, without a byte order mark."""
    for line in lines_or_errors(stream, name):
        if isinstance(line, BadRecord):
            raise line.error
        yield line


def lines_or_errors(stream: IO[bytes], name: str) -> Iterator[str | BadRecord]:
    """Yield the lines of a UTF-8 stream, without a byte order mark; a `BadRecord` for a line of invalid UTF-8."""
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"{name}, line {number}"
            message = (
                f"{where}: byte {error.start + 1} of the line is not UTF-8; "
                f"convert the file, for example with `iconv -f latin1 -t utf-8`"
            )
            yield BadRecord(where, InputError(message, field="source"), line.decode("utf-8", "surrogateescape"))
