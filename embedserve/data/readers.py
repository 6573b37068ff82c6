"""One reader per file format; each yields records with their positions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from embedserve.data.arrow_readers import count_dataset, open_parquet, read_dataset, read_parquet
from embedserve.data.delimited import read_table
from embedserve.data.records import BadRecord, Record
from embedserve.data.text_files import COMPRESSED, lines_or_errors, opened
from embedserve.errors import InputError

TEXT_SUFFIXES = (".txt", ".md")


def read_records(source: Path | str, kind: str) -> Iterator[Record]:
    """Yield the records of a source of a known format; raise `InputError` at the first invalid one."""
    for record in read_all_records(source, kind):
        if isinstance(record, BadRecord):
            raise record.error
        yield record


def read_all_records(source: Path | str, kind: str) -> Iterator[Record | BadRecord]:
    """Yield the records of a source of a known format, including invalid ones.

    Raises:
        InputError: The source itself is damaged, so that records cannot be separated: a truncated compressed or Parquet
            file, a table without a header or with a quotation mark that is never closed.
    """
    if source == "-":
        return read_jsonl(cast(IO[bytes], sys.stdin.buffer), "standard input")
    if kind == "dataset":
        return read_dataset(str(source))
    path = Path(source)
    if kind == "folder":
        return read_folder(path)
    if kind == "parquet":
        return read_parquet(path)
    if kind == "beir":
        return read_beir(path)
    return read_lines(path, kind)


def count_records(source: Path | str, kind: str) -> int | None:
    """Return the number of records; None for a pipe, which can be read only once.

    Reads the whole file, which takes a thousandth of the time of embedding it.
    """
    path = Path(source)
    if source == "-":
        return None
    if kind == "dataset":
        return count_dataset(str(source))
    if kind == "folder":
        return sum(1 for _ in text_files(path))
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
    """Return the corpus file of a BEIR folder, optionally compressed."""
    plain = folder / "corpus.jsonl"
    existing = (path for path in (plain, *(plain.with_name(plain.name + end) for end in COMPRESSED)) if path.exists())
    return next(existing, plain)


def read_beir(folder: Path) -> Iterator[Record | BadRecord]:
    """Yield the corpus of a BEIR folder; the keys of a ``metadata`` object become fields of the record."""
    for record in read_lines(corpus_file(folder), "jsonl"):
        if isinstance(record, BadRecord):
            yield record
            continue
        metadata = record.values.pop("metadata", None)
        if isinstance(metadata, dict):
            record.values.update({name: value for name, value in metadata.items() if name not in record.values})
        elif metadata is not None:
            record.values["metadata"] = metadata
        yield record


def read_lines(path: Path, kind: str) -> Iterator[Record | BadRecord]:
    """Yield the records of a JSONL, CSV or TSV file, optionally compressed."""
    with opened(path) as stream:
        if kind == "jsonl":
            yield from read_jsonl(stream, str(path))
        else:
            yield from read_table(stream, str(path), "," if kind == "csv" else "\t")


def read_jsonl(stream: IO[bytes], name: str) -> Iterator[Record | BadRecord]:
    """Yield one record per line that is not blank."""
    for number, line in enumerate(lines_or_errors(stream, name), start=1):
        if isinstance(line, BadRecord):
            yield line
            continue
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"{where}: not valid JSON: {error}; write one object per line"
            yield BadRecord(where, InputError(problem, field="source"), line.rstrip("\r\n"))
            continue
        if isinstance(values, dict):
            yield Record(where, number, values)
        else:
            problem = f"{where}: a record must be a JSON object, got {type(values).__name__}"
            yield BadRecord(where, InputError(problem, field="source"), values)


def text_files(folder: Path) -> Iterator[Path]:
    """Yield the text files in ``folder``, recursively and sorted by path; skip hidden ones."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in names:
        path = folder / name
        if is_folder:
            if not path.is_symlink():
                yield from text_files(path)
        elif path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
            yield path


def read_folder(folder: Path) -> Iterator[Record | BadRecord]:
    """Yield one record per .txt and .md file in ``folder``, with its relative path."""
    number = 0
    for number, path in enumerate(text_files(folder), start=1):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            problem = f"{path}, line {line}: not UTF-8; convert or remove the file"
            yield BadRecord(str(path), InputError(problem, field="source"), None)
            continue
        yield Record(str(path), number, {"path": path.relative_to(folder).as_posix(), "text": text})
    if not number:
        others = sorted({path.suffix for path in folder.iterdir() if path.is_file() and path.suffix})
        hint = f"; to read one of its {', '.join(others)} files, name the file" if others else ""
        raise InputError(f"{folder} has no .txt or .md files{hint}", field="source")
