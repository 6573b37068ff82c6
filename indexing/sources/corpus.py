"""Documents, and reading them from folders, JSONL, CSV, Parquet, BEIR, Hugging Face datasets and standard input."""

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
    """One document of a collection.

    Attributes:
        id: Identifier, unique in a collection.
        text: Text to embed, after the title; may be blank only if there is a title.
        title: Short title.
        metadata: Other JSON values; stored, not embedded.
        where: File and line it was read from, for messages; not stored, and ignored by ``==``.

    Raises:
        InputError: A field has the wrong type, is blank, or is not valid Unicode.
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
            raise InputError("text is empty and there is no title; add text, or remove the record", field="text")

    @property
    def prefix(self) -> str:
        """Start of error messages about the document."""
        return f"{self.where}: " if self.where else ""

    @property
    def content(self) -> str:
        """The text to embed: title and text."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


@dataclass(frozen=True)
class FieldNames:
    """The record fields of each part of a document."""

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
    """Yield the documents of ``source``; at most a record, or a thousand rows of Arrow, are in memory.

    Args:
        source: A folder of .txt and .md files, a BEIR folder, a .jsonl, .ndjson, .csv or .tsv file (optionally .gz or
            .zst), a .parquet file, a folder written by ``save_to_disk`` of Hugging Face ``datasets``,
            ``hf:NAME[:SPLIT]`` for a dataset on the Hub, or ``"-"`` for JSONL from standard input.
        fmt: folder, jsonl, csv, tsv, parquet, beir or dataset. Default: detected from the name of the source.
        id_field: Field of the id. Default: ``id`` or ``_id`` if the record has it, else the line number.
        text_field: Field of the text.
        title_field: Field of the title; optional in a record.
        metadata_fields: Fields stored as metadata. Default: all except id, text and title.

    Raises:
        InputError: Immediately if the source does not exist; while reading, with file and line, if a record is invalid;
            at the end if there were no records.
    """
    records = read_all(
        source,
        fmt=fmt,
        id_field=id_field,
        text_field=text_field,
        title_field=title_field,
        metadata_fields=metadata_fields,
    )
    return valid_documents(records, name_of(source))


def read_all(
    source: Path | str,
    *,
    fmt: str | None = None,
    id_field: str | None = None,
    text_field: str = "text",
    title_field: str = "title",
    metadata_fields: Sequence[str] | None = None,
) -> Iterator[Document | BadRecord]:
    """Yield the documents and invalid records of ``source``; otherwise like `read_documents`.

    Raises:
        InputError: Immediately if the source does not exist; while reading, if the source itself is damaged. No records
            at all is not an error.
    """
    with readable(source):
        kind = format_of(source, fmt)
    fields = FieldNames(id_field, text_field, title_field, metadata_fields)
    if kind == "folder":
        if fields != FieldNames(None, "text", "title", None):
            message = f"{source} is a folder of text files, which have no fields; remove the field options"
            raise InputError(message, field="source")
        fields = FieldNames("path", "text", "title", ())
    return documents_of(source, kind, fields)


def documents_of(source: Path | str, kind: str, fields: FieldNames) -> Iterator[Document | BadRecord]:
    """Yield the documents and invalid records of a source of a known format."""
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


def valid_documents(records: Iterator[Document | BadRecord], name: str) -> Iterator[Document]:
    """Yield the documents; raise `InputError` at the first invalid record, and at the end if there were none."""
    empty = True
    for record in records:
        if isinstance(record, BadRecord):
            raise record.error
        yield record
        empty = False
    if empty:
        raise InputError(f"{name} has no documents", field="source")


def count_documents(source: Path | str, *, fmt: str | None = None) -> int | None:
    """Return the number of records of ``source``; None for a pipe."""
    with readable(source):
        return count_records(source, format_of(source, fmt))


@contextmanager
def readable(source: Path | str) -> Iterator[None]:
    """Convert an `OSError` of reading into an `InputError` that names the source."""
    try:
        yield
    except OSError as error:
        where = error.filename or name_of(source)
        raise InputError(f"{where} cannot be read: {error.strerror or error}", field="source") from error


def name_of(source: Path | str) -> str:
    """Return the name of ``source`` for messages."""
    return "standard input" if source == "-" else str(source)


def format_of(source: Path | str, fmt: str | None) -> str:
    """Return the format of ``source``; raise `InputError` if it is unknown or the source does not exist."""
    if fmt is not None and fmt not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {fmt!r}", field="format")
    if source == "-":
        if fmt not in (None, "jsonl"):
            raise InputError(f"standard input must be JSONL, not {fmt}", field="format")
        if sys.stdin is None:
            raise InputError("standard input is closed", field="source")
        return "jsonl"
    if str(source).startswith(HUB):
        if fmt not in (None, "dataset"):
            raise InputError(f"{source} is a Hugging Face dataset, not {fmt}", field="format")
        return "dataset"
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path} does not exist", field="source")
    if path.is_dir():
        return directory_format(path, fmt)
    if fmt in ("folder", "beir", "dataset"):
        raise InputError(f"{path} is a file; the format {fmt} needs a folder", field="source")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    kind = fmt or (SUFFIXES.get(suffixes[-1]) if suffixes else None)
    if kind is None:
        raise InputError(
            f"{path} has an unknown suffix; known are {', '.join(SUFFIXES)} (optionally .gz, .zst) and folders of .txt "
            "and .md files; set the format with --format",
            field="source",
        )
    return kind


def directory_format(path: Path, fmt: str | None) -> str:
    """Return ``beir`` for a folder with corpus.jsonl, ``dataset`` for a saved dataset, else ``folder``."""
    has_corpus = corpus_file(path).exists()
    if fmt == "beir" and not has_corpus:
        raise InputError(f"{path} has no corpus.jsonl", field="source")
    if fmt == "dataset" and not is_dataset(path):
        raise InputError(f"{path} was not written by save_to_disk: it has no dataset_info.json", field="source")
    if fmt in (None, "folder", "beir", "dataset"):
        return fmt or ("beir" if has_corpus else "dataset" if is_dataset(path) else "folder")
    raise InputError(f"{path} is a folder; pass the {fmt} file itself", field="source")


def to_document(record: Record, fields: FieldNames) -> Document:
    """Return the document of a record; raise `InputError` with file, line and field."""
    values = record.values
    id_field = fields.id or next((name for name in ID_FIELDS if name in values), None)
    parts = {id_field, fields.text, fields.title}
    metadata = [name for name in values if name not in parts] if fields.metadata is None else fields.metadata
    try:
        title = value_of(values, fields.title, "title") if fields.title in values or fields.title != "title" else ""
        text = value_of(values, fields.text, "text")
        identifier: Any = str(record.number) if id_field is None else value_of(values, id_field, "id")
        return Document(
            id=str(identifier) if isinstance(identifier, int) and not isinstance(identifier, bool) else identifier,
            text="" if text is None and title else text,
            title="" if title is None else title,
            metadata={name: values[name] for name in metadata if name in values},
            where=record.where,
        )
    except InputError as error:
        named = {"id": id_field, "text": fields.text, "title": fields.title}.get(error.field or "")
        at = f", field {named!r}" if named and named != error.field and named not in error.message else ""
        raise InputError(f"{record.where}{at}: {error.message}", field=error.field) from None


def value_of(values: Mapping[str, Any], name: str, part: str) -> Any:
    """Return ``values[name]``; if it is missing, raise `InputError` with the existing fields and the option."""
    if name not in values:
        existing = ", ".join(map(repr, values)) or "no fields"
        raise InputError(f"no field {name!r}; the record has {existing}; use --{part}-field NAME", field=part)
    return values[name]
