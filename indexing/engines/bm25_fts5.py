"""BM25 in SQLite's FTS5: lexical search with the same hits as any other index.

The score of a document is the sum over the query's words of

    idf(w) · f · (k1 + 1) / (f + k1 · (1 - b + b · |D| / avgdl)),   idf(w) = ln((N - n + 0.5) / (n + 0.5)),

with f the word's occurrences in the document, |D| its words, n the documents with the word (Robertson and Zaragoza
2009, section 3.4). FTS5 fixes k1 = 1.2 and b = 0.75, and takes 1e-6 for an idf that is not above 0: a word of more
than half of the documents decides nothing but ties.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from indexing.base import Hits, clip_k, make_hits
from indexing.storage.engine_files import ENGINE_REMEDY, open_engine, save_engine
from indexing.storage.row_table import as_allowed, as_rows, check_new, places_of_known

K1, B = 1.2, 0.75  # FTS5's, not ours to choose
Tokenizer = Literal["unicode61", "porter", "trigram"]
WORD = re.compile(r"[^\W_]+")
FILE = "words.sqlite"


def compile_query(text: str) -> str:
    """Return the FTS5 expression for any of the words of ``text``; empty where it has none.

    A word is a run of letters and digits, each is quoted, and one that occurs twice counts once; so nothing in a
    person's text is syntax.

    >>> compile_query('body:NEAR("x") OR -y*')
    '"body" OR "NEAR" OR "x" OR "OR" OR "y"'
    """
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(WORD.findall(text)))


class Bm25Index:
    """Words of texts, ranked by BM25. The texts are kept, since FTS5 needs them to remove one.

    Many threads may share it; they take turns.

    Args:
        tokenizer: ``unicode61`` splits at all but letters and digits, and folds case and diacritics; ``porter``
            also takes English endings off; ``trigram`` finds parts of words of 3 letters and more, and serves
            languages written without spaces.
    """

    kind = "bm25"
    metric = "bm25"

    def __init__(self, tokenizer: Tokenizer = "unicode61") -> None:
        if tokenizer not in get_args(Tokenizer):
            known = ", ".join(get_args(Tokenizer))
            raise InputError(f"tokenizer must be one of {known}, got {tokenizer!r}", field="tokenizer")
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._read_only = False
        self._connection = _connect(":memory:")
        with self._connection:
            options = f"tokenize='{tokenizer}'"
            self._connection.execute(f"CREATE VIRTUAL TABLE texts USING fts5(text, {options})")
        self._ordered = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, rows: np.ndarray, texts: Sequence[str]) -> None:
        """Add ``texts`` under the row numbers ``rows`` (n,): all of them or, with an error, none.

        Raises:
            InputError: A text that is no string or not Unicode, a row that is there already or given twice.
        """
        _check_texts(texts, "texts")
        new = as_rows(rows, len(texts))
        check_new(self._ordered, new)
        self._change("INSERT INTO texts(rowid, text) VALUES (?, ?)", list(zip(new.tolist(), texts, strict=True)))
        self._ordered = np.sort(np.concatenate([self._ordered, new]))

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
        places = places_of_known(self._ordered, rows)
        self._change("DELETE FROM texts WHERE rowid = ?", [(int(row),) for row in self._ordered[places]])
        self._ordered = np.delete(self._ordered, places)

    def _change(self, sql: str, values: Sequence[tuple[Any, ...]]) -> None:
        with self._lock:
            if self._read_only:  # what was saved stays as it is: from here on the index lives in memory
                own = _connect(":memory:")
                self._connection.backup(own)
                self._connection.close()
                self._connection, self._read_only = own, False
            with self._connection:
                self._connection.executemany(sql, values)

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best ``k`` rows of each query; equal scores by lower row. A row with none of its words is no hit.

        A filter changes which rows are found, not their scores: N, n and avgdl stay those of all texts.

        Args:
            queries: What people typed; no character of it is FTS5 syntax.
            k: Hits for each query, clipped to the rows there are.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over.
        """
        _check_texts(queries, "queries")
        k = clip_k(k, len(self))
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        chosen = None if allowed is None else json.dumps(as_allowed(allowed).tolist())
        for place, query in enumerate(queries):
            expression = compile_query(query)
            found = self._find(expression, k, chosen) if expression and k else []
            for rank, (row, score) in enumerate(found):
                rows[place, rank], scores[place, rank] = row, -score  # FTS5's best is the lowest
        return make_hits(rows, scores)

    def _find(self, expression: str, k: int, chosen: str | None) -> list[tuple[int, float]]:
        only = "" if chosen is None else "AND rowid IN (SELECT value FROM json_each(?))"
        sql = f"SELECT rowid, bm25(texts) AS score FROM texts WHERE texts MATCH ? {only} ORDER BY score, rowid LIMIT ?"  # noqa: S608
        values = [expression, *([] if chosen is None else [chosen]), k]
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""

        def write(path: Path) -> None:
            with self._lock, closing(_connect(str(path))) as file:
                self._connection.backup(file)

        save_engine(directory, self.kind, {"tokenizer": self.tokenizer}, {FILE: write}, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None) -> Bm25Index:
        """Return the index that `save` wrote, read from its file; the first change copies it into memory.

        The errors are those of `indexing.storage.engine_files.open_engine`.
        """
        opened = open_engine(directory, cls.kind, fingerprint)
        index = cls(opened.fields["tokenizer"])
        path = opened.files[FILE]
        file = _connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1")
        try:
            found = file.execute("SELECT rowid FROM texts ORDER BY rowid").fetchall()
        except sqlite3.DatabaseError as error:
            file.close()
            raise CorruptFileError(f"{path} is not a readable text index: {error}; {ENGINE_REMEDY}") from None
        index._connection.close()
        index._connection, index._read_only = file, True
        index._ordered = np.array([row for (row,) in found], dtype=np.int64)
        return index

    def close(self) -> None:
        """Give memory and file back; searching afterwards is an error."""
        with self._lock:
            self._connection.close()


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, uri=True, check_same_thread=False)


def _check_texts(texts: Sequence[str], field: str) -> None:
    if isinstance(texts, str):
        raise InputError(f"{field} must be a list of texts, got one string", field=field)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{field}[{place}] is of type {type(text).__name__}, not a string", field=field)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{field}[{place}] is not Unicode: it holds half of a surrogate pair", field=field
            ) from None
