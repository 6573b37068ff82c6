"""documents.sqlite: the documents of a segment by row, and their metadata as typed values for filters."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from embedserve.errors import CorruptFileError, InputError, NotFoundError
from indexing.query.filters import Condition
from indexing.query.metadata import OBJECT, values_of
from indexing.segments.metadata_json import encode_metadata
from indexing.sources.corpus import Document

SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL
);
CREATE TABLE paths (number INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE meta (
    path INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    value NOT NULL,
    row INTEGER NOT NULL,
    listed INTEGER NOT NULL,
    PRIMARY KEY (path, kind, value, row, listed)
) WITHOUT ROWID;
"""
COLUMNS = "row, id, title, text, metadata"
ROWS_PER_QUERY = 500
IDS_PER_QUERY = 10_000


class DocumentTable:
    """Inserts rows into the tables of `SCHEMA`.

    Args:
        connection: To an empty database.
        unique: Whether ids must be unique.
    """

    def __init__(self, connection: sqlite3.Connection, *, unique: bool = True) -> None:
        self._connection = connection
        self._paths: dict[str, int] = {}
        connection.executescript(SCHEMA if unique else SCHEMA.replace("id TEXT NOT NULL UNIQUE", "id TEXT NOT NULL"))

    def insert(self, first: int, documents: Sequence[Document], metadata: Sequence[bytes]) -> None:
        """Insert documents from row ``first`` on.

        Args:
            first: Row of the first document.
            documents: The documents.
            metadata: The metadata of each, from `encode_metadata`.

        Raises:
            sqlite3.IntegrityError: An id exists already.
        """
        lines, values = [], []
        for row, (document, encoded) in enumerate(zip(documents, metadata, strict=True), start=first):
            lines.append((row, document.id, document.title, document.text, encoded.decode()))
            for path, kind, value, listed in values_of(document.metadata):
                values.append((self._number(path), kind, value, row, listed))
        self._connection.executemany(f"INSERT INTO documents ({COLUMNS}) VALUES (?, ?, ?, ?, ?)", lines)  # noqa: S608
        self._connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?, ?, ?, ?)", values)

    def _number(self, path: str) -> int:
        if path not in self._paths:
            self._paths[path] = len(self._paths)
            self._connection.execute("INSERT INTO paths VALUES (?, ?)", (self._paths[path], path))
        return self._paths[path]


class DocumentWriter:
    """Fills a new database, which is valid only after `finish`.

    Args:
        path: Must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._sources_path = path.with_suffix(".sources")
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            # An interrupted build is discarded, so the database needs no journal.
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._table = DocumentTable(self._connection)
            self._connection.execute("BEGIN")
            # Until `finish`, line n holds the source of document n for error messages: too large for memory.
            self._sources = self._sources_path.open("x+", encoding="utf-8", errors="backslashreplace")
        except BaseException:  # close the file, then re-raise
            self._connection.close()
            raise

    def add(self, documents: Sequence[Document]) -> None:
        """Append documents.

        Raises:
            InputError: A duplicate id, or metadata that is not JSON.
        """
        try:
            self._table.insert(self.count, documents, [encode_metadata(document) for document in documents])
        except sqlite3.IntegrityError:
            raise self._duplicate(documents) from None
        self._sources.writelines(" ".join(document.where.split()) + "\n" for document in documents)
        self.count += len(documents)

    def _duplicate(self, documents: Sequence[Document]) -> InputError:
        """Return the error for the first id of ``documents`` that exists already."""
        seen: dict[str, int] = {}
        for row, document in enumerate(documents, start=self.count):
            stored = self._connection.execute(
                "SELECT row FROM documents WHERE id = ? AND row < ?", (document.id, self.count)
            ).fetchone()
            first = stored[0] if stored else seen.setdefault(document.id, row)
            if first != row:
                before = documents[first - self.count].where if first >= self.count else self._source(first)
                both = f"{before} and {document.where}" if before else f"documents {first + 1} and {row + 1}"
                return InputError(
                    f"{both} have the same id {document.id!r}; "
                    "make ids unique, or take them from another field with --id-field NAME",
                    field="id",
                )
        return InputError("two documents have the same id", field="id")

    def _source(self, row: int) -> str:
        """Return the source of a document of an earlier batch."""
        self._sources.seek(0)
        return next(islice(self._sources, row, None)).rstrip("\n")

    def finish(self) -> None:
        """Commit the rows."""
        self._connection.execute("COMMIT")
        self._sources_path.unlink()

    def close(self) -> None:
        """Close the files; an unfinished database is discarded."""
        with suppress(OSError):
            self._sources.close()
        self._connection.close()


class DocumentStore:
    """Reads a finished database. Thread-safe.

    Holds one open connection, which can read the file after its name was removed by a newer build.

    Args:
        path: File written by `DocumentWriter`; it must not change while it is open.

    Raises:
        CorruptFileError: The file is not such a database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with ExitStack() as opened:
            try:
                self._connection = sqlite3.connect(
                    f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
                )
                opened.callback(self._connection.close)
                self.count = int(self._connection.execute("SELECT count(*) FROM documents").fetchone()[0])
            except sqlite3.DatabaseError as error:
                raise CorruptFileError(f"{path} is not a readable document database: {error}") from None
            opened.pop_all()
        weakref.finalize(self, self._connection.close)

    def __len__(self) -> int:
        return self.count

    def get(self, rows: Iterable[int]) -> list[Document]:
        """Return the documents at ``rows``, in that order.

        Raises:
            NotFoundError: No such row.
        """
        requested = [int(row) for row in rows]
        distinct = list(dict.fromkeys(requested))
        documents: dict[int, Document] = {}
        for start in range(0, len(distinct), ROWS_PER_QUERY):
            part = distinct[start : start + ROWS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            lines = self._query(f"SELECT {COLUMNS} FROM documents WHERE row IN ({marks})", part)  # noqa: S608
            documents.update((line[0], decode(line)) for line in lines)
        if missing := [row for row in distinct if row not in documents]:
            raise NotFoundError(f"row {missing[0]} does not exist; there are {self.count} rows")
        return [documents[row] for row in requested]

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the row of each id that exists."""
        row_of: dict[str, int] = {}
        for start in range(0, len(ids), ROWS_PER_QUERY):
            part = ids[start : start + ROWS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            row_of.update(self._query(f"SELECT id, row FROM documents WHERE id IN ({marks})", part))  # noqa: S608
        return row_of

    def ids(self) -> Iterator[str]:
        """Yield all ids in ascending order of code points."""
        last = ""
        while part := self._query("SELECT id FROM documents WHERE id > ? ORDER BY id LIMIT ?", (last, IDS_PER_QUERY)):
            yield from (name for (name,) in part)
            last = part[-1][0]

    def matching(self, condition: Condition) -> np.ndarray:
        """Return the rows (m,) int64 for which ``condition`` holds, in any order."""
        with self._lock:
            return matching_rows(self._connection, condition)

    def groups(self, path: str) -> list[tuple[int, Any, np.ndarray]]:
        """Return each value at ``path`` of the metadata: kind, value, and the rows (m,) int64 with it."""
        with self._lock:
            return value_groups(self._connection, path)

    def __iter__(self) -> Iterator[Document]:
        for start in range(0, self.count, ROWS_PER_QUERY):
            yield from self.get(range(start, min(start + ROWS_PER_QUERY, self.count)))

    def _query(self, sql: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        with self._lock:
            self._connection.close()


def matching_rows(connection: sqlite3.Connection, condition: Condition) -> np.ndarray:
    """Return the rows (m,) int64 of a database of `SCHEMA` for which ``condition`` holds, in any order."""
    sql = f"SELECT json_group_array(row) FROM ({condition.sql})"  # noqa: S608  # one value: ten times as fast
    return _numbers(connection.execute(sql, condition.values).fetchone()[0])


def value_groups(connection: sqlite3.Connection, path: str) -> list[tuple[int, Any, np.ndarray]]:
    """Return each scalar at ``path``: kind, value, and the rows (m,) int64 with it, possibly repeated."""
    sql = (
        "SELECT kind, value, json_group_array(row) FROM meta "
        "WHERE path = (SELECT number FROM paths WHERE path = ?) AND kind > ? GROUP BY kind, value"
    )
    return [(kind, value, _numbers(rows)) for kind, value, rows in connection.execute(sql, (path, OBJECT))]


def _numbers(text: str) -> np.ndarray:
    return np.array(orjson.loads(text), dtype=np.int64)


def decode(line: Sequence[Any]) -> Document:
    """Return the document of a row of the table."""
    _, document_id, title, text, metadata = line
    return Document(document_id, text, title, orjson.loads(metadata))
