"""documents.sqlite: what stands behind each row of an index."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from embedserve.errors import CorruptFileError, InputError, NotFoundError
from indexing.corpus import Document

SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL
)
"""
COLUMNS = "row, id, title, text, metadata"
ROWS_PER_QUERY = 500
NESTED = 8  # levels of an answer in which metadata stands, with some to spare


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
            self._connection.execute(SCHEMA)
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
        lines = [
            (row, document.id, document.title, document.text, encode_metadata(document))
            for row, document in enumerate(documents, start=self.count)
        ]
        try:
            self._connection.executemany(f"INSERT INTO documents ({COLUMNS}) VALUES (?, ?, ?, ?, ?)", lines)  # noqa: S608
        except sqlite3.IntegrityError:
            raise self._duplicate(documents) from None
        self._places.writelines(" ".join(document.where.split()) + "\n" for document in documents)
        self.count += len(lines)

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


def encode_metadata(document: Document) -> str:
    """Return the metadata as JSON text, or raise `InputError` naming the document and the field at fault.

    Answers are written by orjson, which knows less than Python's json: what it refuses has to be refused here, where
    the source can still be mended, and not in every search that finds the document.
    """
    for name, value in document.metadata.items():
        if problem := metadata_problem({name: value}):
            raise InputError(
                f"{document.prefix}metadata of document {document.id!r} is not JSON: field {name!r}: {problem}",
                field="metadata",
            )
    return json.dumps(dict(document.metadata), ensure_ascii=False)


def metadata_problem(values: Any) -> str:
    """Return why ``values`` cannot be part of an answer, or nothing."""
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        for _ in range(NESTED):
            values = [values]
        orjson.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def decode(line: Sequence[Any]) -> Document:
    """Return the document of one line of the table."""
    _, document_id, title, text, metadata = line
    return Document(document_id, text, title, json.loads(metadata))
