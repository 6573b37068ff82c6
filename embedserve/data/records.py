"""Records of a source, valid and invalid ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedserve.errors import InputError


@dataclass(frozen=True)
class Record:
    """One record of a source.

    Attributes:
        where: File and line, for messages.
        number: Line, row or position in the folder, from 1.
        values: Fields of the record.
    """

    where: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRecord:
    """An invalid record.

    Attributes:
        where: File and line, as in `Record`.
        error: What is wrong; its message starts with ``where``.
        raw: The record as a JSON value; None if it cannot be read.
    """

    where: str
    error: InputError
    raw: Any

    @property
    def reason(self) -> str:
        """What is wrong, without ``where``."""
        return self.error.message.removeprefix(self.where).lstrip(":, ")
