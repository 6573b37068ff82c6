"""Log lines for people or for programs: never a secret, and never a text that a user sent.

Messages of exceptions may quote what a user sent, so a traceback is logged without them, but for those kinds that
speak of files, memory and devices.
"""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from embedserve.errors import CorruptFileError, LoadError

SPEAK_OF_THE_MACHINE = (OSError, MemoryError, LoadError, CorruptFileError)
PACKAGES_OF_THE_MACHINE = ("torch",)

ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class ConsoleFormatter(logging.Formatter):
    """Lines for people; exceptions without their messages, unless ``messages`` asks for them."""

    def __init__(self, *, messages: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self.messages = messages

    def formatException(self, ei: ErrorInfo) -> str:
        """Return the traceback of an exception and of those it came from."""
        if self.messages:
            return super().formatException(ei)
        return "\n".join(_without_messages(ei[1]))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what another formatter has written of the exception is not taken over."""
        record.exc_text = None
        return super().format(record)


class JsonFormatter(ConsoleFormatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        fields = getattr(record, "fields", None)
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "request" if fields else record.getMessage(),
            **(fields or {}),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(values, default=str).decode()


def use_format(kind: str, *, messages: bool = False) -> None:
    """Let the handlers of the root logger write lines of one kind, ``console`` or ``json``.

    Args:
        kind: The setting ``log_format``.
        messages: Write messages of exceptions too, which may quote texts of users; for a developer who looks on.
    """
    formatter = (JsonFormatter if kind == "json" else ConsoleFormatter)(messages=messages)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def _without_messages(error: BaseException | None) -> list[str]:
    """Return the lines of a traceback, with the kinds of the exceptions only."""
    if error is None:
        return []
    before = _without_messages(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
    lines = [*before, "which led to:"] if before else []
    lines += [line.rstrip("\n") for line in traceback.format_tb(error.__traceback__)]
    kind = type(error)
    shown = isinstance(error, SPEAK_OF_THE_MACHINE) or kind.__module__.split(".")[0] in PACKAGES_OF_THE_MACHINE
    return [*lines, f"{kind.__module__}.{kind.__qualname__}{f': {error}' if shown else ''}"]
