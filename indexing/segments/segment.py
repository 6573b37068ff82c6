"""Segments: documents and their vectors in immutable files.

A segment is a folder: ``documents.sqlite``, ``sequence.npy`` with the sequence number of each row, the files of each
field (`indexing.segments.field_files`), and ``segment.json``, written last, with the size and digest of every file.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from embedserve.disk_records import read_record, record_text
from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, NotFoundError
from indexing.query.filters import Condition, Filter, evaluate
from indexing.segments.document_table import DocumentStore, DocumentWriter
from indexing.segments.field_files import FieldWriter, field_writer, open_field, take
from indexing.segments.fields import Field, Vectors, check_all_vectors, check_fields, vector_fields
from indexing.sources.corpus import Document
from indexing.storage.checksums import REMEDY, FileRecord, check_file, inode_of, record_of
from indexing.storage.engine_files import ENGINE, array_writer, read_array
from indexing.storage.files import make_directory, replace_file, sync

FORMAT = 1
SEGMENT = "segment.json"
DOCUMENTS, SEQUENCE = "documents.sqlite", "sequence.npy"
FILE_NAME = re.compile(r"([a-z0-9]+/)?[a-z0-9]+(\.[a-z]+){1,2}")
MASK_BYTES = 2**25  # of cached filter masks per segment


@dataclass(frozen=True)
class SegmentRecord:
    """The content of segment.json.

    Attributes:
        count: Number of documents.
        kinds: The kind of index of each field.
        fields: The fields, as `Field.plain`.
        files: Every other file of the folder, by its path in it.
    """

    count: int
    kinds: Mapping[str, str]
    fields: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, FileRecord]

    def to_json(self) -> str:
        """Return the text of segment.json."""
        values = {"format": FORMAT, **asdict(self)}
        return record_text(values, sort_keys=True)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> SegmentRecord:
        """Return the record of parsed values; raise `ValueError`, `KeyError` or `TypeError` if they are invalid."""
        del values["format"]
        if not all(map(FILE_NAME.fullmatch, values["files"])):
            raise ValueError("naming files outside of its folder")
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        return cls(**values)


class SegmentWriter:
    """Writes a segment batch by batch; it is valid only after `finish`. The same input gives the same bytes.

    Args:
        folder: Must not exist; its parents are created.
        fields: By name.
        strict: Whether too few documents for a kind of index are an error; otherwise a suitable kind is used.

    Raises:
        OSError, sqlite3.Error: The disk cannot be written; from every method.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Field], *, strict: bool = True) -> None:
        self.folder, self.fields = folder, check_fields(fields)
        self.count = 0
        self._sequences: list[np.ndarray] = []
        make_directory(folder.parent)
        folder.mkdir()
        with ExitStack() as opened:
            self._documents = DocumentWriter(folder / DOCUMENTS)
            opened.callback(self._documents.close)
            self._writers: dict[str, FieldWriter] = {}
            for name, field in self.fields.items():
                self._writers[name] = field_writer(folder, name, field, strict=strict)
                opened.callback(self._writers[name].close)
            self._opened = opened.pop_all()

    def add(
        self, documents: Sequence[Document], vectors: Mapping[str, Vectors], sequences: np.ndarray | None = None
    ) -> None:
        """Append documents.

        Args:
            documents: Ids must be unique in the segment.
            vectors: Of each document, for every field but words.
            sequences: (n,) int64, ascending over all calls: their sequence numbers. Default: 0, 1, …

        Raises:
            InputError: A duplicate id, metadata that is not JSON, or vectors that do not fit.
        """
        checked = check_all_vectors(self.fields, vectors, len(documents))
        self._documents.add(documents)
        for name, writer in self._writers.items():
            writer.append(checked[name] if name in checked else [document.content for document in documents])
        if sequences is None:
            sequences = np.arange(self.count, self.count + len(documents), dtype=np.int64)
        self._sequences.append(np.asarray(sequences, dtype=np.int64))
        self.count += len(documents)

    def finish(self, progress: Callable[[int], None] = lambda _: None) -> SegmentRecord:
        """Run `flush`, `index` and `seal`."""
        self.flush()
        self.index(progress)
        return self.seal()

    def flush(self) -> None:
        """Write buffered data; `InputError` if there are no documents."""
        if not self.count:
            raise InputError("no documents to index", field="documents")
        self._documents.finish()
        for writer in self._writers.values():
            writer.flush()

    def index(self, progress: Callable[[int], None]) -> None:
        """Build the indexes in memory; `InputError` if an index needs more documents.

        Args:
            progress: Called with the number of documents indexed so far.
        """
        for writer in self._writers.values():
            writer.index(progress)

    def seal(self) -> SegmentRecord:
        """Write and sync every file, then segment.json."""
        kinds = {name: writer.finish() for name, writer in self._writers.items()}
        self.close()
        array_writer(np.concatenate(self._sequences))(self.folder / SEQUENCE)
        files = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            sync(path)
            files[path.relative_to(self.folder).as_posix()] = record_of(path)
        for folder in {path.parent for path in self.folder.rglob("*")}:
            sync(folder)
        fields = {name: field.plain() for name, field in self.fields.items()}
        record = SegmentRecord(self.count, kinds, fields, files)
        replace_file(self.folder / SEGMENT, record.to_json().encode())
        sync(self.folder.parent)
        return record

    def close(self) -> None:
        """Close all files; the folder of an unfinished segment may be removed."""
        self._opened.close()


def read_segment(folder: Path) -> SegmentRecord:
    """Return the record of a finished segment without checking its files.

    Raises:
        NotFoundError: The segment is not finished.
        CorruptFileError: segment.json is damaged or of another format.
    """
    try:
        return read_record(folder / SEGMENT, SegmentRecord.from_values, REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} does not contain a finished segment") from None


class Segment:
    """An open segment. Thread-safe; its files stay readable after they are deleted.

    Args:
        folder: Folder of the segment.
        fields: Fields of the collection.

    Raises:
        NotFoundError, CorruptFileError: As `read_segment`; or a file is missing, damaged, or inconsistent.
        IndexMismatchError: The segment has other fields.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Field]) -> None:
        self.folder, self.fields, self.name = folder, fields, folder.name
        self.record = record = read_segment(folder)
        check_same_fields(folder, record, fields)
        for name, expected in record.files.items():
            if "/" in name and not name.endswith(f"/{ENGINE}"):
                continue  # engine.json has its digest, which is verified when the engine is opened
            check = check_file(folder / name, expected, name)
            if not check.ok:
                raise CorruptFileError(f"{folder / name} {check.problem}; {REMEDY}", field="collection")
        self.count, self._inodes = record.count, [inode_of(folder / name) for name in record.files]
        self._sequences = read_array(folder / SEQUENCE)
        self.engines = {name: open_field(folder, name, field, record.kinds[name]) for name, field in fields.items()}
        self.given = {  # mapped now, because a merge may delete the file
            name: read_array(folder / f"{name}.npy", memory_map=True)
            for name, field in fields.items()
            if field.output == "dense"
        }
        self.documents = DocumentStore(folder / DOCUMENTS)
        sizes = {"documents.sqlite": len(self.documents), SEQUENCE: len(self._sequences)}
        sizes |= {name: len(engine) for name, engine in self.engines.items()}
        wrong = [f"{name} has {size}" for name, size in sizes.items() if size != record.count]
        wrong += [
            f"{name} is {self.engines[name].dim} wide instead of {field.dim}"
            for name, field in fields.items()
            if field.output != "words" and self.engines[name].dim != field.dim
        ]
        if wrong:
            self.documents.close()
            raise CorruptFileError(f"{folder}: {record.count} documents, but {', '.join(wrong)}; {REMEDY}")
        self._masks: OrderedDict[Condition, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def sequences(self, count: int) -> np.ndarray:
        """Return the sequence number (n,) int64 of each row, ascending, relative to the base of the segment."""
        return self._sequences

    def get(self, rows: Sequence[int]) -> list[Document]:
        """Return the documents at ``rows``."""
        return self.documents.get(rows)

    def find(self, ids: Sequence[str], count: int) -> dict[str, int]:
        """Return the row of each id that exists."""
        return self.documents.find(ids)

    def mask(self, condition: Filter, count: int) -> np.ndarray:
        """Return which rows (n,) bool match a filter; masks of conditions are cached."""
        return evaluate(condition, self._matches)

    def _matches(self, condition: Condition) -> np.ndarray:
        with self._lock:
            cached = self._masks.get(condition)
            if cached is not None:
                self._masks.move_to_end(condition)
                return cached
        mask = np.zeros(self.count, dtype=bool)
        mask[self.documents.matching(condition)] = True
        with self._lock:
            self._masks[condition] = mask
            while len(self._masks) > 1 and len(self._masks) * self.count > MASK_BYTES:
                self._masks.popitem(last=False)
        return mask

    def groups(self, path: str, count: int) -> list[tuple[int, Any, np.ndarray]]:
        """Return each value at a metadata path: kind, value, rows."""
        return self.documents.groups(path)

    def take(self, name: str, rows: np.ndarray) -> Vectors:
        """Return the vectors at ``rows`` (m,) of a field with vectors."""
        if name in self.given:
            return np.asarray(self.given[name][rows])
        return take(self.fields[name], self.engines[name], rows)

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[list[Document], dict[str, Vectors], np.ndarray]]:
        """Yield the arguments of `SegmentWriter.add` for ``rows`` (m,) in batches, read from the files on disk."""
        if self._inodes != [inode_of(self.folder / name) for name in self.record.files]:  # the open ones are mapped
            message = f"a file in {self.folder} was replaced while it was open; open the collection again"
            raise CorruptFileError(message, field="collection")
        names = vector_fields(self.fields)
        with closing(DocumentStore(self.folder / DOCUMENTS)) as documents:  # the open one caches pages
            for part in (rows[start : start + size] for start in range(0, len(rows), size)):
                vectors = {name: self.take(name, part) for name in names}
                yield documents.get(part.tolist()), vectors, self._sequences[part]


def check_same_fields(folder: Path, record: SegmentRecord, fields: Mapping[str, Field]) -> None:
    """Raise `IndexMismatchError` if the fields of a segment differ in name, encoder, dimension or metric."""
    keys = ("output", "dim", "metric", "fingerprint")
    actual = {name: [values.get(key) for key in keys] for name, values in record.fields.items()}
    expected = {name: [field.plain()[key] for key in keys] for name, field in fields.items()}
    if actual != expected:
        names = sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name))
        message = f"the segment in {folder} has other fields than the collection: {', '.join(names)} differ"
        raise IndexMismatchError(message)
