"""Records that could not be indexed: one JSON line each, with the place they stand at and the reason."""

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

FIRST = b'{"source": '  # what every line begins with
WHERE = re.compile(r"(?P<source>.*), (?:line|row) (?P<line>[0-9]+)", re.DOTALL)


class DeadLetters:
    """Writes dead letters to a file, which is removed at the end where there are none.

    A line is ``{"source", "line", "reason", "record"}``: the file, the line or row in it (null where it is a file of
    its own), what is wrong, and what stands there (null where that cannot be told). Half a surrogate pair is written as
    an escape, so nothing is lost.

    Args:
        path: What an earlier run left there is replaced.

    Raises:
        InputError: Something else is there, which stays.
        EmbedserveError: The file cannot be written; from every method.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        with writing(path.parent):
            if not left_by_a_job(path):
                message = f"{path} is there and holds no dead letters; name another file with --dead-letters"
                raise InputError(message, field="dead_letters")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="ascii")

    def write(self, where: str, reason: str, record: Any) -> None:
        """Add a line."""
        source, line = place_of(where)
        with writing(self.path.parent):
            self._file.write(json.dumps({"source": source, "line": line, "reason": reason, "record": record}) + "\n")
        self.count += 1

    def flush(self) -> None:
        """Hand what was written to the system, so that a job that is killed leaves it."""
        with writing(self.path.parent):
            self._file.flush()

    def close(self) -> None:
        """Put the file safely on the disk."""
        with writing(self.path.parent):
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            if not self.count:
                self.path.unlink()


@contextmanager
def dead_letters(path: Path) -> Iterator[DeadLetters]:
    """Give a `DeadLetters` that is closed at the end, whatever happens."""
    letters = DeadLetters(path)
    try:
        yield letters
    finally:
        letters.close()


def left_by_a_job(path: Path) -> bool:
    """Say whether a job may replace what is at ``path``: nothing, or a file of dead letters, be it cut short."""
    if not path.is_file():
        return not path.exists()
    with path.open("rb") as file:
        return FIRST.startswith(file.read(len(FIRST)))


def place_of(where: str) -> tuple[str, int | None]:
    """Return the source and the line that ``where`` names.

    >>> place_of("a, b.jsonl, line 12"), place_of("notes/a.txt")
    (('a, b.jsonl', 12), ('notes/a.txt', None))
    """
    found = WHERE.fullmatch(where)
    return (found["source"], int(found["line"])) if found else (where, None)
