"""The dead-letter file: one JSON line per skipped record, with its position and the reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedserve.errors import InputError
from indexing.storage.files import writing

FIRST = b'{"source": '  # the first bytes of every line
WHERE = re.compile(r"(?P<source>.*), (?:line|row) (?P<line>[0-9]+)", re.DOTALL)


class DeadLetters:
    """Writes the dead-letter file; the file is removed if it stays empty.

    A line is ``{"source", "line", "reason", "record"}``: the file, the line or row in it (null if the record is a whole
    file), what is wrong, and the record (null if it cannot be read). Lone surrogates are written as escapes, so that
    nothing is lost.

    Args:
        path: The file; one of an earlier run is replaced.

    Raises:
        InputError: ``path`` exists and is not a dead-letter file; it is not changed.
        EmbedserveError: The file cannot be written; from every method.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        with writing(path.parent):
            if not is_replaceable(path):
                message = f"{path} exists and is not a dead-letter file; choose another file with --dead-letters"
                raise InputError(message, field="dead_letters")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="ascii")

    def write(self, where: str, reason: str, record: Any) -> None:
        """Append a line."""
        source, line = split_where(where)
        with writing(self.path.parent):
            self._file.write(json.dumps({"source": source, "line": line, "reason": reason, "record": record}) + "\n")
        self.count += 1

    def flush(self) -> None:
        """Flush to the operating system, so that the lines survive if the job is killed."""
        with writing(self.path.parent):
            self._file.flush()

    def close(self) -> None:
        """Sync the file to disk."""
        with writing(self.path.parent):
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            if not self.count:
                self.path.unlink()


@contextmanager
def dead_letters(path: Path) -> Iterator[DeadLetters]:
    """Open a `DeadLetters` for the duration of the block."""
    letters = DeadLetters(path)
    try:
        yield letters
    finally:
        letters.close()


def is_replaceable(path: Path) -> bool:
    """Return whether ``path`` is free or a dead-letter file, which may be truncated."""
    if not path.is_file():
        return not path.exists()
    with path.open("rb") as file:
        return FIRST.startswith(file.read(len(FIRST)))


def split_where(where: str) -> tuple[str, int | None]:
    """Return the source and the line of a record's position.

    >>> split_where("a, b.jsonl, line 12"), split_where("notes/a.txt")
    (('a, b.jsonl', 12), ('notes/a.txt', None))
    """
    match = WHERE.fullmatch(where)
    return (match["source"], int(match["line"])) if match else (where, None)
