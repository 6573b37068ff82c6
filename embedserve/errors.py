"""The exception hierarchy, and helpers for the wording of error messages.

EmbedserveError                     what went wrong, which field, what to do
├── InputError (ValueError)         the caller's texts, queries or records
├── SpecError (ValueError)          an encoder specification that makes no sense
├── NotFoundError (LookupError)     no model, collection or document has that name
├── LoadError                       a model folder that cannot or must not be loaded
├── DeviceError                     a GPU that has failed; the process must be restarted
├── BusyError                       the resource is being changed by another program or request
├── IndexMismatchError              a collection built with another encoder
├── CorruptFileError                a file that is damaged, truncated or of another version
└── OverloadedError                 the queue is full: try again later
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class EmbedserveError(Exception):
    """Base class of all errors with a message for the caller.

    Args:
        message: What was received, what is expected, what to do.
        field: The input field that caused the error, if any.
    """

    code = "error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InputError(EmbedserveError, ValueError):
    """The caller's texts, queries or records are not usable."""

    code = "invalid_input"


class SpecError(EmbedserveError, ValueError):
    """An encoder specification makes no sense."""

    code = "invalid_spec"


class NotFoundError(EmbedserveError, LookupError):
    """No model, collection or document has that name."""

    code = "not_found"


class LoadError(EmbedserveError):
    """A model folder cannot or must not be loaded."""

    code = "load_failed"


class DeviceError(EmbedserveError):
    """The device has failed; it is unusable until the process is restarted."""

    code = "device_failed"


class BusyError(EmbedserveError):
    """Another program or request is changing the resource: try again later."""

    code = "busy"


class IndexMismatchError(EmbedserveError):
    """A collection was built with an encoder other than the one in use."""

    code = "encoder_mismatch"


class CorruptFileError(EmbedserveError):
    """A file is damaged, truncated or of another version."""

    code = "corrupt_file"


class OverloadedError(EmbedserveError):
    """The queue is full: try again later.

    Args:
        message: How full the queue is, and when there will be room.
        retry_after_s: Estimated seconds until the queue has room.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def name_texts(error: InputError, name: Callable[[int], str]) -> InputError:
    """Return ``error`` with ``texts[i]``, an index that the caller does not know, replaced by ``name(i)``."""

    def renamed(text: str) -> str:
        return re.sub(r"texts\[(\d+)\]", lambda match: name(int(match[1])), text)

    return InputError(renamed(error.message), field=renamed(error.field) if error.field else None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name most similar to ``name`` and a trailing space; "" if none is similar.

    >>> did_you_mean("serch", ["/search", "/embed"])
    "did you mean '/search'? "
    """
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}? " if matches else ""
