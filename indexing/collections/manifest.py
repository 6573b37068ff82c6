"""manifest.json: what a collection is made of. It is replaced last, so what it names is complete."""

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
    """A file of the rows (n,) int64 of a segment that were deleted."""

    name: str
    count: int
    record: FileRecord


@dataclass(frozen=True)
class SegmentEntry:
    """One segment of a collection.

    Attributes:
        name: Its folder in ``segments/``.
        base: Added to the numbers of its rows in the order of writing.
        count: Documents, deleted ones included.
        kinds: The kind of index of each field.
        record: Of its segment.json, which has the records of all its files.
        dead: What was deleted since.
    """

    name: str
    base: int
    count: int
    kinds: Mapping[str, str]
    record: FileRecord
    dead: DeadRows | None = None

    @property
    def live(self) -> int:
        """Documents that were not deleted."""
        return self.count - (self.dead.count if self.dead is not None else 0)


@dataclass(frozen=True)
class Manifest:
    """What a collection is made of.

    Attributes:
        name: The collection's name when this was written.
        version: Of the manifest; another one each time.
        created: UTC time at which the collection was built, in ISO 8601; for people only.
        fields: By name.
        segments: In the order of writing.
        sequence: The first number in the order of writing that no segment holds: the log begins with it.
        wal: The write-ahead log with all that came later.
        truncated: How many documents were longer than an encoder reads, and cut.
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
        """The first field that holds vectors, or the first of all."""
        return next((f for f in self.fields.values() if f.output != "words"), next(iter(self.fields.values())))

    @property
    def count(self) -> int:
        """Documents in the segments that were not deleted."""
        return sum(entry.live for entry in self.segments)

    @property
    def index(self) -> str:
        """The kind of index over the main field: what was built last and largest, or what is wanted."""
        name = next(name for name, field in self.fields.items() if field is self.main)
        largest = max(self.segments, key=lambda entry: entry.count, default=None)
        return self.main.index if largest is None else largest.kinds[name]

    @property
    def dim(self) -> int:
        """Numbers in a vector of the main field."""
        return self.main.dim

    @property
    def metric(self) -> Metric:
        """What a score of the main field is."""
        return self.main.metric

    @property
    def encoder(self) -> str:
        """The name of the main field's encoder; for people only."""
        return self.main.encoder

    @property
    def fingerprint(self) -> str:
        """The main field's encoder's: only its queries may be compared with these vectors."""
        return self.main.fingerprint

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec of the main field's encoder as plain values."""
        return self.main.spec

    def to_json(self) -> str:
        """Return the text of manifest.json, with the format's version and a digest of the rest."""
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
        """Yield the files it names itself, by their paths; a segment.json names those of its segment."""
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
    """Return 16 hex digits that nothing else is called by."""
    return secrets.token_hex(8)


def now() -> str:
    """Return the time for people: nothing is ordered by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Publish ``manifest``: afterwards, and not before, the collection is what it says."""
    replace_file(directory / MANIFEST, manifest.to_json().encode())


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of the collection in ``directory``; the files it names are not looked at.

    Raises:
        NotFoundError: There is no manifest: no collection was ever finished here.
        CorruptFileError: The manifest is damaged, unreadable or of another format.
    """
    try:
        return read_record(directory / MANIFEST, Manifest.from_values, REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no collection in {directory}", field="collection") from None
