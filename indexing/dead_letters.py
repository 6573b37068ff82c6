"""Records that could not be indexed: one JSON line each, with the place they stand at and the reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

WHERE = re.compile(r"(?P<source>.*), (?:line|row) (?P<line>[0-9]+)", re.DOTALL)


class DeadLetters:
    """Writes dead letters to a file, which is made with the first of them.

    A line is ``{"source", "line", "reason", "record"}``: the file, the line or row in it (null where it is a file of
    its own), what is wrong, and what stands there (null where that cannot be told). Half a surrogate pair is written as
    an escape, so nothing is lost.

    Args:
        path: What an earlier run left there is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._file: IO[str] | None = None
        path.unlink(missing_ok=True)

    def write(self, where: str, reason: str, record: Any) -> None:
        """Add a line."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("x", encoding="ascii")
        source, line = place_of(where)
        self._file.write(json.dumps({"source": source, "line": line, "reason": reason, "record": record}) + "\n")
        self.count += 1

    def flush(self) -> None:
        """Hand what was written to the system, so that a job that is killed leaves it."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Put the file safely on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


@contextmanager
def dead_letters(path: Path) -> Iterator[DeadLetters]:
    """Give a `DeadLetters` that is closed at the end, whatever happens."""
    letters = DeadLetters(path)
    try:
        yield letters
    finally:
        letters.close()


def place_of(where: str) -> tuple[str, int | None]:
    """Return the source and the line that ``where`` names.

    >>> place_of("a, b.jsonl, line 12"), place_of("notes/a.txt")
    (('a, b.jsonl', 12), ('notes/a.txt', None))
    """
    found = WHERE.fullmatch(where)
    return (found["source"], int(found["line"])) if found else (where, None)
