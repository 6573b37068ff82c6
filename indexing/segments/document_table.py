"""documents.sqlite: what stands behind each row of a segment, and its metadata as typed values for filters."""

from __future__ import annotations

import json
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
NESTED = 8  # nesting levels of a response around metadata, with a margin


class DocumentTable:
    """The tables of `SCHEMA` as rows are put into them.

    Args:
        connection: To an empty database.
        unique: Whether an id may stand there only once.
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
    """Fills a new database; what it holds counts only after `finish`.

    Args:
        path: A file that does not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._places_path = path.with_suffix(".places")
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            # A build that dies is thrown away whole, so the database needs no journal of its own.
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._table = DocumentTable(self._connection)
            self._connection.execute("BEGIN")
            # Line n says where document n was read, until `finish`: too much to keep in memory, not wanted later.
            self._places = self._places_path.open("x+", encoding="utf-8", errors="backslashreplace")
        except BaseException:  # only to close the file; the error goes on
            self._connection.close()
            raise

    def add(self, documents: Sequence[Document]) -> None:
        """Give ``documents`` the next rows, in order.

        Raises:
            InputError: An id is there already, or metadata is not JSON.
        """
        try:
            self._table.insert(self.count, documents, [encode_metadata(document) for document in documents])
        except sqlite3.IntegrityError:
            raise self._duplicate(documents) from None
        self._places.writelines(" ".join(document.where.split()) + "\n" for document in documents)
        self.count += len(documents)

    def _duplicate(self, documents: Sequence[Document]) -> InputError:
        """Return the error that names the first id of ``documents`` that is there already."""
        seen: dict[str, int] = {}
        for row, document in enumerate(documents, start=self.count):
            stored = self._connection.execute(
                "SELECT row FROM documents WHERE id = ? AND row < ?", (document.id, self.count)
            ).fetchone()
            first = stored[0] if stored else seen.setdefault(document.id, row)
            if first != row:
                before = documents[first - self.count].where if first >= self.count else self._place(first)
                both = f"{before} and {document.where}" if before else f"documents {first + 1} and {row + 1}"
                return InputError(
                    f"{both} have the same id {document.id!r}; "
                    "make ids unique, or take them from another field with --id-field NAME",
                    field="id",
                )
        return InputError("two documents have the same id", field="id")

    def _place(self, row: int) -> str:
        """Return where the document of an earlier batch was read."""
        self._places.seek(0)
        return next(islice(self._places, row, None)).rstrip("\n")

    def finish(self) -> None:
        """Write what is still in memory to the file."""
        self._connection.execute("COMMIT")
        self._places_path.unlink()

    def close(self) -> None:
        """Give the file back; what was not finished is not wanted."""
        with suppress(OSError):
            self._places.close()
        self._connection.close()


class DocumentStore:
    """Reads a finished database; many threads may share it.

    One connection is opened at once and kept: it goes on reading its file after a newer build took the file's
    name away, which a connection opened later could not.

    Args:
        path: The file that `DocumentWriter` made. It must not change while it is open.

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
        """Return the documents at ``rows``, in their order.

        Raises:
            NotFoundError: There is no such row.
        """
        wanted = [int(row) for row in rows]
        distinct = list(dict.fromkeys(wanted))
        found: dict[int, Document] = {}
        for start in range(0, len(distinct), ROWS_PER_QUERY):
            part = distinct[start : start + ROWS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            lines = self._query(f"SELECT {COLUMNS} FROM documents WHERE row IN ({marks})", part)  # noqa: S608
            found.update((line[0], decode(line)) for line in lines)
        if missing := [row for row in distinct if row not in found]:
            raise NotFoundError(f"there is no row {missing[0]}; there are {self.count}")
        return [found[row] for row in wanted]

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the row of each of ``ids`` that is there."""
        found: dict[str, int] = {}
        for start in range(0, len(ids), ROWS_PER_QUERY):
            part = ids[start : start + ROWS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            found.update(self._query(f"SELECT id, row FROM documents WHERE id IN ({marks})", part))  # noqa: S608
        return found

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
        """Return each value at ``path`` of the metadata: kind, value, and the rows (m,) int64 that have it."""
        with self._lock:
            return value_groups(self._connection, path)

    def __iter__(self) -> Iterator[Document]:
        for start in range(0, self.count, ROWS_PER_QUERY):
            yield from self.get(range(start, min(start + ROWS_PER_QUERY, self.count)))

    def _query(self, sql: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Give the file back; reading afterwards is an error."""
        with self._lock:
            self._connection.close()


def matching_rows(connection: sqlite3.Connection, condition: Condition) -> np.ndarray:
    """Return the rows (m,) int64 of a database of `SCHEMA` for which ``condition`` holds, in any order."""
    sql = f"SELECT json_group_array(row) FROM ({condition.sql})"  # noqa: S608  # one value: ten times as fast
    return _numbers(connection.execute(sql, condition.values).fetchone()[0])


def value_groups(connection: sqlite3.Connection, path: str) -> list[tuple[int, Any, np.ndarray]]:
    """Return each scalar at ``path``: kind, value, and the rows (m,) int64 that have it, some of them twice."""
    sql = (
        "SELECT kind, value, json_group_array(row) FROM meta "
        "WHERE path = (SELECT number FROM paths WHERE path = ?) AND kind > ? GROUP BY kind, value"
    )
    return [(kind, value, _numbers(rows)) for kind, value, rows in connection.execute(sql, (path, OBJECT))]


def _numbers(text: str) -> np.ndarray:
    return np.array(orjson.loads(text), dtype=np.int64)


def encode_metadata(document: Document) -> bytes:
    """Return the metadata as JSON.

    Raises:
        InputError: The metadata cannot be part of a response; names the document and the field. Responses are written
            by orjson, which supports less than the standard library, so this is checked before the write.
    """
    try:
        encoded = orjson.dumps(_nested(document.metadata))[NESTED:-NESTED]
        if orjson.loads(encoded) == document.metadata:  # not NaN, a date or another type that orjson converts
            return encoded
    except TypeError:  # the slow path names the field
        pass
    for name, value in document.metadata.items():
        if problem := metadata_problem({name: value}):
            raise InputError(
                f"{document.prefix}metadata of document {document.id!r} is not JSON: field {name!r}: {problem}",
                field="metadata",
            )
    return json.dumps(dict(document.metadata), ensure_ascii=False).encode()


def metadata_problem(metadata: Any) -> str:
    """Return why ``metadata`` cannot be part of a response; empty if it can."""
    try:
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
        orjson.dumps(_nested(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def _nested(values: Any) -> Any:
    """Return ``values`` inside of `NESTED` lists, to test the nesting limit of orjson."""
    for _ in range(NESTED):
        values = [values]
    return values


def decode(line: Sequence[Any]) -> Document:
    """Return the document of a row of the table."""
    _, document_id, title, text, metadata = line
    return Document(document_id, text, title, orjson.loads(metadata))
