"""Log formatters for people and for programs; the log never has secrets or texts of users.

Messages of exceptions may quote texts of users, so tracebacks are logged without them, except for exceptions about
files, memory and devices.
"""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from embedserve.errors import CorruptFileError, LoadError

SYSTEM_ERRORS = (OSError, MemoryError, LoadError, CorruptFileError)
SYSTEM_PACKAGES = ("torch",)

ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class ConsoleFormatter(logging.Formatter):
    """Formats lines for people; ``messages`` includes the messages of exceptions. Default: False."""

    def __init__(self, *, messages: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self.messages = messages

    def formatException(self, ei: ErrorInfo) -> str:
        """Return the traceback of an exception and of its causes."""
        if self.messages:
            return super().formatException(ei)
        return "\n".join(_without_messages(ei[1]))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the exception text that another formatter may have cached."""
        record.exc_text = None
        return super().format(record)


class JsonFormatter(ConsoleFormatter):
    """Formats one JSON object per line: ``time``, ``level``, ``logger``, ``message``, and the fields of a request."""

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
    """Set the formatter of the root logger's handlers.

    Args:
        kind: ``console`` or ``json``, the setting ``log_format``.
        messages: Whether to log messages of exceptions, which may quote texts of users; for development.
    """
    formatter = (JsonFormatter if kind == "json" else ConsoleFormatter)(messages=messages)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def _without_messages(error: BaseException | None) -> list[str]:
    """Return the lines of a traceback with the classes of its exceptions, without most messages."""
    if error is None:
        return []
    before = _without_messages(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
    lines = [*before, "which led to:"] if before else []
    lines += [line.rstrip("\n") for line in traceback.format_tb(error.__traceback__)]
    kind = type(error)
    shown = isinstance(error, SYSTEM_ERRORS) or kind.__module__.split(".")[0] in SYSTEM_PACKAGES
    return [*lines, f"{kind.__module__}.{kind.__qualname__}{f': {error}' if shown else ''}"]
