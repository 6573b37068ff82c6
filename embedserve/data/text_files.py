"""Text files, compressed or not, line by line; lines that are not UTF-8 are told apart and do not end the reading."""

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
    """Open a file, compressed or not; raise `InputError` where it turns out to be no whole compressed file."""
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
                raise InputError(f"{path} is not a whole gzip file: {error}", field="source") from None
            except OSError as error:
                if kind != ".zst" or error.errno is not None:  # the system's own refusals have a number
                    raise
                raise InputError(f"{path} is not a whole zstd file: {error}", field="source") from None


def zstd_stream(file: IO[bytes]) -> IO[bytes]:
    """Return what a file compressed with zstd holds, one frame or several."""
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))


def decoded_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream, line ends kept, a byte order mark dropped."""
    for line in lines_or_faults(stream, name):
        if isinstance(line, BadRecord):
            raise line.error
        yield line


def lines_or_faults(stream: IO[bytes], name: str) -> Iterator[str | BadRecord]:
    """Yield the lines of a UTF-8 stream, a byte order mark dropped; where one is not UTF-8, what is wrong with it."""
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"{name}, line {number}"
            problem = (
                f"{where}: byte {error.start + 1} of the line is not UTF-8; "
                f"convert it, for example with `iconv -f latin1 -t utf-8`"
            )
            yield BadRecord(where, InputError(problem, field="source"), line.decode("utf-8", "surrogateescape"))
