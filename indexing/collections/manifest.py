"""manifest.json: the files of a collection. It is replaced last, so every file it names is complete."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedserve.disk_records import read_record, record_text
from embedserve.errors import NotFoundError
from indexing.base import Metric
from indexing.segments.fields import Field, check_fields
from indexing.storage.checksums import REMEDY, FileRecord
from indexing.storage.files import replace_file

FORMAT = 3
MANIFEST = "manifest.json"
SEGMENTS = "segments"
HEX = r"[0-9a-f]{16}"
SEGMENT_NAME, WAL_NAME, DEAD_NAME = re.compile(HEX), re.compile(rf"wal-{HEX}\.log"), re.compile(rf"dead-{HEX}\.npy")


@dataclass(frozen=True)
class DeadRows:
    """The file with the deleted rows (n,) int64 of a segment."""

    name: str
    count: int
    record: FileRecord


@dataclass(frozen=True)
class SegmentEntry:
    """One segment of a collection.

    Attributes:
        name: Its folder in ``segments/``.
        base: Added to the sequence numbers of its rows.
        count: Number of documents, including deleted ones.
        kinds: The kind of index of each field.
        record: Record of its segment.json, which has the records of all its files.
        dead: The rows deleted since it was written.
    """

    name: str
    base: int
    count: int
    kinds: Mapping[str, str]
    record: FileRecord
    dead: DeadRows | None = None

    @property
    def live(self) -> int:
        """Number of documents that are not deleted."""
        return self.count - (self.dead.count if self.dead is not None else 0)


@dataclass(frozen=True)
class Manifest:
    """The files of a collection and its fields.

    Attributes:
        name: Name of the collection when the manifest was written.
        version: Unique for each manifest.
        created: UTC time of the build in ISO 8601; informational.
        fields: By name.
        segments: In write order.
        sequence: The first sequence number that is not in a segment; the log starts with it.
        wal: The write-ahead log with all later writes.
        truncated: Number of documents that an encoder truncated.
    """

    name: str
    version: str
    created: str
    fields: Mapping[str, Field]
    segments: Sequence[SegmentEntry]
    sequence: int
    wal: str
    truncated: int = 0

    @property
    def main(self) -> Field:
        """The first field with vectors, or else the first field."""
        return next((f for f in self.fields.values() if f.output != "words"), next(iter(self.fields.values())))

    @property
    def count(self) -> int:
        """Number of live documents in the segments."""
        return sum(entry.live for entry in self.segments)

    @property
    def index(self) -> str:
        """The kind of index of the main field: that of the largest segment, or else the configured one."""
        name = next(name for name, field in self.fields.items() if field is self.main)
        largest = max(self.segments, key=lambda entry: entry.count, default=None)
        return self.main.index if largest is None else largest.kinds[name]

    @property
    def dim(self) -> int:
        """Dimension of the main field."""
        return self.main.dim

    @property
    def metric(self) -> Metric:
        """Metric of the main field."""
        return self.main.metric

    @property
    def encoder(self) -> str:
        """Name of the main field's encoder; informational."""
        return self.main.encoder

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the main field's encoder, which must embed the queries."""
        return self.main.fingerprint

    @property
    def spec(self) -> Mapping[str, Any]:
        """Spec of the main field's encoder as plain values."""
        return self.main.spec

    def to_json(self) -> str:
        """Return the text of manifest.json, with format version and digest."""
        values = {"format": FORMAT, **asdict(self)}
        return record_text(values)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Manifest:
        """Return the manifest of a parsed record; raise `ValueError`, `KeyError` or `TypeError` for invalid values."""
        segments = tuple(map(_entry_of, values["segments"]))
        names = [(SEGMENT_NAME, entry.name) for entry in segments]
        names += [(DEAD_NAME, entry.dead.name) for entry in segments if entry.dead is not None]
        if not all(pattern.fullmatch(name) for pattern, name in [*names, (WAL_NAME, values["wal"])]):
            raise ValueError("naming files outside of its folder")
        return cls(
            values["name"],
            values["version"],
            values["created"],
            check_fields({name: Field(**field) for name, field in values["fields"].items()}),
            segments,
            values["sequence"],
            values["wal"],
            values["truncated"],
        )

    def files(self) -> Iterator[tuple[str, FileRecord]]:
        """Yield path and record of the files it names; each segment.json names the files of its segment."""
        for entry in self.segments:
            yield f"{SEGMENTS}/{entry.name}/segment.json", entry.record
            if entry.dead is not None:
                yield entry.dead.name, entry.dead.record


def _entry_of(values: Mapping[str, Any]) -> SegmentEntry:
    dead = values["dead"]
    if dead is not None:
        dead = DeadRows(dead["name"], dead["count"], FileRecord(**dead["record"]))
    record = FileRecord(**values["record"])
    return SegmentEntry(values["name"], values["base"], values["count"], values["kinds"], record, dead)


def new_name() -> str:
    """Return a unique name of 16 hex digits."""
    return secrets.token_hex(8)


def now() -> str:
    """Return the UTC time in ISO 8601; informational, nothing is ordered by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Publish ``manifest`` atomically; this is the commit of every change to segments."""
    replace_file(directory / MANIFEST, manifest.to_json().encode())


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of the collection in ``directory`` without checking the files it names.

    Raises:
        NotFoundError: There is no manifest.
        CorruptFileError: The manifest is damaged, unreadable or of another format.
    """
    try:
        return read_record(directory / MANIFEST, Manifest.from_values, REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{directory} does not contain a collection", field="collection") from None
