"""One reader for each file format: each yields records with the place they came from."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any, cast

from embedserve.errors import InputError

TEXT_SUFFIXES = (".txt", ".md")
PARQUET_BATCH = 1024


@dataclass(frozen=True)
class Record:
    """One record of a source.

    Attributes:
        where: File and line, for messages.
        number: Its line, row or place in the folder, from 1.
        values: Its fields.
    """

    where: str
    number: int
    values: dict[str, Any]


def read_records(source: Path | str, kind: str) -> Iterator[Record]:
    """Yield the records of a source of a known format."""
    if source == "-":
        return read_jsonl(cast(IO[bytes], sys.stdin.buffer), "standard input")
    path = Path(source)
    if kind == "folder":
        return read_folder(path)
    if kind == "parquet":
        return read_parquet(path)
    if kind == "beir":
        return read_beir(path)
    return read_lines(path, kind)


def count_records(source: Path | str, kind: str) -> int | None:
    """Return the number of records, or None of a pipe, which can be read only once.

    A file is read through for it: that takes a thousandth of the time that embedding it takes.
    """
    path = Path(source)
    if source == "-":
        return None
    if kind == "folder":
        return len(text_files(path))
    path = corpus_file(path) if kind == "beir" else path
    if not path.is_file():
        return None
    if kind == "parquet":
        return int(open_parquet(path).metadata.num_rows)
    if kind in ("csv", "tsv"):
        return sum(1 for _ in read_lines(path, kind))
    with opened(path) as stream:
        return sum(1 for line in stream if not line.isspace())


def corpus_file(folder: Path) -> Path:
    """Return the corpus of a BEIR folder."""
    plain = folder / "corpus.jsonl"
    return plain if plain.exists() else folder / "corpus.jsonl.gz"


def is_gzip(path: Path) -> bool:
    """Return whether the name of a file says that it is compressed."""
    return path.suffix.lower() == ".gz"


def read_beir(folder: Path) -> Iterator[Record]:
    """Yield the corpus of a BEIR folder; what stands in its ``metadata`` object counts as fields of the record."""
    for record in read_lines(corpus_file(folder), "jsonl"):
        metadata = record.values.pop("metadata", None)
        if isinstance(metadata, dict):
            record.values.update({name: value for name, value in metadata.items() if name not in record.values})
        elif metadata is not None:
            record.values["metadata"] = metadata
        yield record


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, compressed or not; raise `InputError` where it turns out to be no whole gzip file."""
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) if is_gzip(path) else nullcontext(file) as stream:
        try:
            yield cast(IO[bytes], stream)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path} is not a whole gzip file: {error}", field="source") from None


def read_lines(path: Path, kind: str) -> Iterator[Record]:
    """Yield the records of a JSONL, CSV or TSV file, compressed or not."""
    with opened(path) as stream:
        if kind == "jsonl":
            yield from read_jsonl(stream, str(path))
        else:
            yield from read_table(stream, str(path), "," if kind == "csv" else "\t")


def decoded_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream, line ends kept, a byte order mark dropped."""
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: byte {error.start + 1} of the line is not UTF-8; "
                f"convert it, for example with `iconv -f latin1 -t utf-8`",
                field="source",
            ) from None


def read_jsonl(stream: IO[bytes], name: str) -> Iterator[Record]:
    """Yield one record for each line that is not blank."""
    for number, line in enumerate(decoded_lines(stream, name), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON: {error}; each line holds one object", field="source") from None
        if not isinstance(values, dict):
            raise InputError(f"{where}: a record is a JSON object, got {type(values).__name__}", field="source")
        yield Record(where, number, values)


def read_table(stream: IO[bytes], name: str, delimiter: str) -> Iterator[Record]:
    """Yield one record for each row below the header; a record's place is the line it begins on."""
    csv.field_size_limit(2**31 - 1)  # the module refuses fields above 128 KiB otherwise
    rows = csv.reader(decoded_lines(stream, name), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in rows:
            where, number, line = f"{name}, line {line}", line, rows.line_num + 1
            if not row:
                continue
            if header is None:
                header = row
                if len(set(header)) < len(header):
                    raise InputError(f"{where}: two columns have the same name", field="source")
            elif len(row) != len(header):
                raise InputError(
                    f"{where}: {len(row)} values for {len(header)} columns; quote values that hold "
                    f"{'a comma' if delimiter == ',' else 'a tab'} or a line end",
                    field="source",
                )
            else:
                yield Record(where, number, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise InputError(f"{name}, line {line}: {table_problem(error)}", field="source") from None


def table_problem(error: csv.Error) -> str:
    """Say what is wrong with a table, also where the csv module speaks to programmers."""
    text = str(error)
    if text.startswith("new-line character"):
        return "a carriage return stands alone; end lines with a line feed, for example with `tr '\\r' '\\n'`"
    return "a quotation mark is not closed" if text == "unexpected end of data" else text


def text_files(folder: Path) -> list[Path]:
    """Return the text files below ``folder``, sorted, hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_folder(folder: Path) -> Iterator[Record]:
    """Yield every .txt and .md file below ``folder`` by its relative path."""
    paths = text_files(folder)
    if not paths:
        others = sorted({path.suffix for path in folder.iterdir() if path.is_file() and path.suffix})
        hint = f"; it has {', '.join(others)} files: name one of them" if others else ""
        raise InputError(f"{folder} holds no .txt or .md files{hint}", field="source")
    for number, path in enumerate(paths, start=1):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise InputError(f"{path}, line {line}: not UTF-8; convert it or take it out", field="source") from None
        yield Record(str(path), number, {"path": path.relative_to(folder).as_posix(), "text": text})


def open_parquet(path: Path) -> Any:
    """Return the `pyarrow.parquet.ParquetFile` at ``path``, or raise `InputError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} is no regular file; Parquet is not read from its beginning on", field="source")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a whole Parquet file: {error}", field="source") from None


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file, one row group in memory at a time."""
    import pyarrow as pa

    with nullcontext(open_parquet(path)) as file:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    plain = {name: to_json_value(value) for name, value in values.items()}
                    yield Record(f"{path}, row {number}", number, plain)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}, after row {number}: {error}", field="source") from None


def to_json_value(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: times in ISO 8601, bytes in hex, NaN as null, strangers as their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(name): to_json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)
