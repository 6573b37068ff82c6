"""What a source is read as: records, and what stood in the place of one that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedserve.errors import InputError


@dataclass(frozen=True)
class Record:
    """One record of a source.

    Attributes:
        where: File and line, for messages.
        number: Its line, row or place in the folder, from 1.
        values: Its fields.
    """

    where: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
        where: File and line, as in `Record`.
        error: What is wrong with it; its message begins with the place.
        raw: What stands there, as a JSON value; None where it cannot be told.
    """

    where: str
    error: InputError
    raw: Any

    @property
    def reason(self) -> str:
        """What is wrong with it, without the place."""
        return self.error.message.removeprefix(self.where).lstrip(":, ")
