"""Documents and where they come from: folders, JSONL, CSV, Parquet, BEIR, Hugging Face datasets, standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedserve.data.arrow_readers import HUB, is_dataset
from embedserve.data.readers import corpus_file, count_records, read_all_records
from embedserve.data.records import BadRecord, Record
from embedserve.data.text_files import COMPRESSED
from embedserve.errors import InputError

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
FORMATS = ("folder", "jsonl", "csv", "tsv", "parquet", "beir", "dataset")
ID_FIELDS = ("id", "_id")


@dataclass(frozen=True)
class Document:
    """One thing to be found.

    Attributes:
        id: The caller's name for it, unique in a collection.
        text: What is embedded, after the title; may be blank only where there is a title.
        title: A short name.
        metadata: Anything else, as JSON values; kept, not embedded.
        where: File and line it was read from, for messages only: not kept, and no part of what makes two equal.

    Raises:
        InputError: A field is of the wrong type, blank, or not valid Unicode.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("id", "text", "title"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InputError(f"{name} must be a string, got {type(value).__name__}", field=name)
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{name} is not valid Unicode at character {error.start}", field=name) from None
        if not self.id:
            raise InputError("id is empty", field="id")
        if not self.text.strip() and not self.title.strip():
            raise InputError("text is empty, and there is no title; give it some words or leave it out", field="text")

    @property
    def prefix(self) -> str:
        """What a complaint about the document begins with."""
        return f"{self.where}: " if self.where else ""

    @property
    def content(self) -> str:
        """What the encoder reads: title and text."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


@dataclass(frozen=True)
class Fields:
    """Which fields of a record become which parts of a document."""

    id: str | None
    text: str
    title: str
    metadata: Sequence[str] | None


def read_documents(
    source: Path | str,
    *,
    fmt: str | None = None,
    id_field: str | None = None,
    text_field: str = "text",
    title_field: str = "title",
    metadata_fields: Sequence[str] | None = None,
) -> Iterator[Document]:
    """Yield the documents of ``source`` one by one; nothing is held in memory but a record or a thousand rows.

    Args:
        source: A folder of .txt and .md files, a BEIR folder, a .jsonl, .ndjson, .csv, .tsv (each also .gz or .zst) or
            .parquet file, a folder that ``save_to_disk`` of Hugging Face ``datasets`` wrote, ``hf:NAME[:SPLIT]`` for a
            dataset on the hub, or ``"-"`` for JSONL from standard input.
        fmt: One of folder, jsonl, csv, tsv, parquet, beir, dataset; by default the source's name tells.
        id_field: The field of the id; by default ``id`` or ``_id`` where there is one, else the line number.
        text_field: The field of the text.
        title_field: The field of the title; a record may lack it.
        metadata_fields: The fields kept as metadata; by default all that are not id, text or title.

    Raises:
        InputError: At once where the source cannot be there; while reading, naming file and line, where a record
            is not usable; at the end where there was none.
    """
    found = read_all(
        source,
        fmt=fmt,
        id_field=id_field,
        text_field=text_field,
        title_field=title_field,
        metadata_fields=metadata_fields,
    )
    return usable(found, name_of(source))


def read_all(
    source: Path | str,
    *,
    fmt: str | None = None,
    id_field: str | None = None,
    text_field: str = "text",
    title_field: str = "title",
    metadata_fields: Sequence[str] | None = None,
) -> Iterator[Document | BadRecord]:
    """Yield the documents of ``source`` and, where a record cannot be one, what stood there; else as `read_documents`.

    Raises:
        InputError: At once where the source cannot be there; while reading, where it is damaged so that what follows
            cannot be told apart. Having no records at all is no error.
    """
    with readable(source):
        kind = format_of(source, fmt)
    fields = Fields(id_field, text_field, title_field, metadata_fields)
    if kind == "folder":
        if fields != Fields(None, "text", "title", None):
            message = f"{source} is a folder of texts, which have no fields; leave out what names fields"
            raise InputError(message, field="source")
        fields = Fields("path", "text", "title", ())
    return documents_of(source, kind, fields)


def documents_of(source: Path | str, kind: str, fields: Fields) -> Iterator[Document | BadRecord]:
    """Yield what stands in a source of a known format."""
    with readable(source):
        for record in read_all_records(source, kind):
            if isinstance(record, BadRecord):
                yield record
                continue
            try:
                document = to_document(record, fields)
            except InputError as error:
                yield BadRecord(record.where, error, record.values)
            else:
                yield document


def usable(found: Iterator[Document | BadRecord], name: str) -> Iterator[Document]:
    """Yield the documents; raise `InputError` at the first bad record, and at the end where there was nothing."""
    empty = True
    for item in found:
        if isinstance(item, BadRecord):
            raise item.error
        yield item
        empty = False
    if empty:
        raise InputError(f"{name} holds no documents", field="source")


def count_documents(source: Path | str, *, fmt: str | None = None) -> int | None:
    """Return how many documents ``source`` holds, or None where it is a pipe."""
    with readable(source):
        return count_records(source, format_of(source, fmt))


@contextmanager
def readable(source: Path | str) -> Iterator[None]:
    """Turn the system's refusal to read into an `InputError` that names the source."""
    try:
        yield
    except OSError as error:
        where = error.filename or name_of(source)
        raise InputError(f"{where} cannot be read: {error.strerror or error}", field="source") from error


def name_of(source: Path | str) -> str:
    """Return what a message calls ``source``."""
    return "standard input" if source == "-" else str(source)


def format_of(source: Path | str, fmt: str | None) -> str:
    """Return the format of ``source``; raise `InputError` where there is none or nothing to read."""
    if fmt is not None and fmt not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {fmt!r}", field="format")
    if source == "-":
        if fmt not in (None, "jsonl"):
            raise InputError(f"standard input is read as JSONL, not as {fmt}", field="format")
        if sys.stdin is None:
            raise InputError("there is no standard input", field="source")
        return "jsonl"
    if str(source).startswith(HUB):
        if fmt not in (None, "dataset"):
            raise InputError(f"{source} is a Hugging Face dataset, which is not read as {fmt}", field="format")
        return "dataset"
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path} does not exist", field="source")
    if path.is_dir():
        return directory_format(path, fmt)
    if fmt in ("folder", "beir", "dataset"):
        raise InputError(f"{path} is a file; the format {fmt} is a folder", field="source")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    kind = fmt or (SUFFIXES.get(suffixes[-1]) if suffixes else None)
    if kind is None:
        raise InputError(
            f"{path} is of no known type: {', '.join(SUFFIXES)} (also .gz, .zst), or a folder of .txt and .md files; "
            "name it with --format",
            field="source",
        )
    return kind


def directory_format(path: Path, fmt: str | None) -> str:
    """Return ``beir`` for a folder with a corpus.jsonl, ``dataset`` for what ``datasets`` saved, else ``folder``."""
    has_corpus = corpus_file(path).exists()
    if fmt == "beir" and not has_corpus:
        raise InputError(f"{path} has no corpus.jsonl", field="source")
    if fmt == "dataset" and not is_dataset(path):
        raise InputError(f"{path} is no dataset that save_to_disk wrote: it has no dataset_info.json", field="source")
    if fmt in (None, "folder", "beir", "dataset"):
        return fmt or ("beir" if has_corpus else "dataset" if is_dataset(path) else "folder")
    raise InputError(f"{path} is a folder; give the {fmt} file itself", field="source")


def to_document(record: Record, fields: Fields) -> Document:
    """Return the document that ``record`` stands for; raise `InputError` naming file, line and field."""
    values = record.values
    id_field = fields.id or next((name for name in ID_FIELDS if name in values), None)
    taken = {id_field, fields.text, fields.title}
    kept = [name for name in values if name not in taken] if fields.metadata is None else fields.metadata
    try:
        title = take(values, fields.title, "title") if fields.title in values or fields.title != "title" else ""
        text = take(values, fields.text, "text")
        found_id: Any = str(record.number) if id_field is None else take(values, id_field, "id")
        return Document(
            id=str(found_id) if isinstance(found_id, int) and not isinstance(found_id, bool) else found_id,
            text="" if text is None and title else text,
            title="" if title is None else title,
            metadata={name: values[name] for name in kept if name in values},
            where=record.where,
        )
    except InputError as error:
        named = {"id": id_field, "text": fields.text, "title": fields.title}.get(error.field or "")
        at = f", field {named!r}" if named and named != error.field and named not in error.message else ""
        raise InputError(f"{record.where}{at}: {error.message}", field=error.field) from None


def take(values: Mapping[str, Any], name: str, part: str) -> Any:
    """Return ``values[name]``; where it is missing, say which fields there are and how to name one."""
    if name not in values:
        have = ", ".join(map(repr, values)) or "no fields"
        raise InputError(f"no field {name!r}; the record has {have}; use --{part}-field NAME", field=part)
    return values[name]
