"""Every error the project raises on purpose, and how their messages name things.

EmbedserveError                     what went wrong, which field, what to do
├── InputError (ValueError)         the caller's texts, queries or records
├── SpecError (ValueError)          an encoder specification that makes no sense
├── NotFoundError (LookupError)     no model, collection or document of that name
├── LoadError                       a model folder that cannot be loaded, or must not be
├── DeviceError                     a GPU that has failed and answers nothing until the process starts anew
├── BusyError                       what another program is changing just now
├── IndexMismatchError              a collection built by another encoder
├── CorruptFileError                a file that is damaged, truncated or of another version
└── OverloadedError                 the queue is full: try again later
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class EmbedserveError(Exception):
    """An error with a message for the person who caused it.

    Args:
        message: What was got, what was wanted, what to do.
        field: The input field at fault, where there is one.
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
    """There is no model, collection or document of that name."""

    code = "not_found"


class LoadError(EmbedserveError):
    """A model folder cannot be loaded, or must not be."""

    code = "load_failed"


class DeviceError(EmbedserveError):
    """The device has failed; nothing works on it until the process starts anew."""

    code = "device_failed"


class BusyError(EmbedserveError):
    """Another program, or another request, is changing it: try again later."""

    code = "busy"


class IndexMismatchError(EmbedserveError):
    """A collection was built by another encoder than the one asking."""

    code = "encoder_mismatch"


class CorruptFileError(EmbedserveError):
    """A file is damaged, truncated or of another version."""

    code = "corrupt_file"


class OverloadedError(EmbedserveError):
    """The queue is full: try again later.

    Args:
        message: How full it is, and when there will be room.
        retry_after_s: Seconds until there probably is room.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def name_texts(error: InputError, name: Callable[[int], str]) -> InputError:
    """Return ``error`` with its ``texts[i]``, a place in a list the caller never saw, called ``name(i)``."""

    def renamed(text: str) -> str:
        return re.sub(r"texts\[(\d+)\]", lambda found: name(int(found[1])), text)

    return InputError(renamed(error.message), field=renamed(error.field) if error.field else None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question after the known name that is most like ``name``, with a space behind; "" where none is.

    >>> did_you_mean("serch", ["/search", "/embed"])
    "did you mean '/search'? "
    """
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""
