"""What every command shares: exit codes, results on stdout, messages on stderr, lines of stdin, loading a model."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import orjson

from api.http.error_responses import ApiError, error_body, printable
from embedserve.errors import (
    CorruptFileError,
    EmbedserveError,
    IndexMismatchError,
    InputError,
    NotFoundError,
    SpecError,
)

if TYPE_CHECKING:
    from embedserve import Encoder, EncoderSpec

OK, FAILURE, BAD_INPUT, NOT_FOUND, CORRUPT, INTERRUPTED = 0, 1, 2, 3, 4, 130

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def exit_code_of(error: EmbedserveError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, InputError | SpecError):
        return BAD_INPUT
    if isinstance(error, NotFoundError) or (isinstance(error, ApiError) and error.status == 404):
        return NOT_FOUND
    if isinstance(error, CorruptFileError | IndexMismatchError):
        return CORRUPT
    return FAILURE


class ReaderGoneError(Exception):
    """The reader of stdout closed it (broken pipe)."""


def report_error(error: EmbedserveError, *, as_json: bool) -> int:
    """Write an error to stderr, as text or as the API's error body, and return its exit code."""
    note(error_body(error).decode() if as_json else f"error: {error.message}")
    return exit_code_of(error)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; None is a closed stream."""
    return stream is not None and stream.isatty()


def for_stream(text: str, stream: TextIO) -> str:
    """Return a text encodable for a stream; for a terminal, without control characters."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", printable(text)) if stream.isatty() else printable(text)


def note(text: str) -> None:
    """Write a message to stderr; never fails."""
    if sys.stderr is not None:
        write_to_stderr(for_stream(f"{text}\n", sys.stderr))


def write_to_stderr(text: str) -> None:
    """Write raw text to stderr; never fails."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO | None) -> None:
    """Redirect a stream to /dev/null, so that flushing it when the interpreter exits cannot fail."""
    if stream is None:
        return
    target = os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, stream.fileno())
    os.close(target)


@contextmanager
def result_stream() -> Iterator[TextIO]:
    """Provide stdout.

    Raises:
        ReaderGoneError: Its reader closed it.
        EmbedserveError: It is closed or cannot be written.
    """
    if sys.stdout is None:
        raise EmbedserveError("standard output is closed; the result cannot be written")
    try:
        yield sys.stdout
    except BrokenPipeError:
        silence(sys.stdout)
        raise ReaderGoneError from None
    except OSError as error:
        silence(sys.stdout)
        raise EmbedserveError(f"cannot write to standard output: {error.strerror}") from None


def out(text: str) -> None:
    """Write a line of the result to stdout."""
    with result_stream() as stream:
        stream.write(for_stream(f"{text}\n", stream))


def out_bytes(data: bytes) -> None:
    """Write bytes of the result to stdout."""
    with result_stream() as stream:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()


def flush_out() -> None:
    """Flush stdout."""
    if sys.stdout is not None:
        with result_stream() as stream:
            stream.flush()


def out_json(value: Any) -> None:
    """Write a result as one line of JSON."""
    out_bytes(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS) + b"\n")


def be_quiet(*, debug: bool) -> None:
    """Silence the log and warnings of libraries, unless ``debug``."""
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    if debug:
        return
    for library in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


def load_encoder(model: str, device: str = "auto", strategy: str | None = None) -> Encoder:
    """Load an encoder; a folder is resolved to its absolute path, which collections record.

    Args:
        model: ``nano``, a folder or a Hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        strategy: How hidden states become a vector, as `parse_spec` reads it. Default: the model's own, or mean.
    """
    from embedserve import Encoder
    from embedserve.spec import parse_spec

    try:
        folder = Path(model).expanduser()
        name = str(folder.resolve()) if model != "nano" and folder.exists() else model
    except (OSError, RuntimeError):  # not a valid path: the loader reports it
        name = model
    source: str | EncoderSpec = name if strategy is None else parse_spec(strategy, backbone=name)
    return Encoder.load(source, device=device)


def numbered_lines(what: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of stdin; raise `InputError` for a blank line or invalid UTF-8."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"no {what} given; pass it as an argument, or pipe one per line to stdin", field=what)
    empty = True
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} of standard input is not UTF-8 at byte {error.start}", field=what
            ) from None
        if not line.strip():
            raise InputError(f"line {number} of standard input is empty; remove empty lines", field=what)
        empty = False
        yield number, line
    if empty:
        raise InputError(f"standard input is empty; pipe one {what} per line", field=what)


def stdin_lines() -> int | None:
    """Return the number of remaining lines of stdin if it is a file; None for a pipe, which can be read only once."""
    try:
        stream = sys.stdin.buffer
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return None
        position = stream.tell()
        count = sum(1 for _ in stream)
        stream.seek(position)
    except (OSError, ValueError, AttributeError):  # closed, or not a real file
        return None
    return count


def arguments_or_lines(arguments: list[str], what: str) -> Iterator[str]:
    """Yield the arguments, or the lines of stdin if there are none or the only one is ``-``."""
    if arguments and arguments != ["-"]:
        for number, text in enumerate(arguments, start=1):
            if not text.strip():
                raise InputError(f"{what} {number} is empty; enter some words", field=what)
        yield from arguments
        return
    for _, line in numbered_lines(what):
        yield line


def stop(code: int) -> NoReturn:
    """Exit a command with a code and no message."""
    import typer

    raise typer.Exit(code)
