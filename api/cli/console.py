"""What every command shares: exit codes, errors on stderr, progress, lines of standard input, quiet model loading."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import time
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
    """Return the exit code that belongs to an error."""
    if isinstance(error, InputError | SpecError):
        return BAD_INPUT
    if isinstance(error, NotFoundError) or (isinstance(error, ApiError) and error.status == 404):
        return NOT_FOUND
    if isinstance(error, CorruptFileError | IndexMismatchError):
        return CORRUPT
    return FAILURE


class ReaderGoneError(Exception):
    """Who reads the result has seen enough."""


def report_error(error: EmbedserveError, *, as_json: bool) -> int:
    """Write an error on stderr, as a sentence or in the one shape of the API, and return its exit code."""
    note(error_body(error).decode() if as_json else f"error: {error.message}")
    return exit_code_of(error)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a person looks at a stream; None stands for one that is closed."""
    return stream is not None and stream.isatty()


def for_stream(text: str, stream: TextIO) -> str:
    """Return a text that a stream can carry; on a terminal, without what could take command of it."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", printable(text)) if stream.isatty() else printable(text)


def note(text: str) -> None:
    """Write a remark on stderr; work goes on where nobody can read it."""
    if sys.stderr is not None:
        write_to_stderr(for_stream(f"{text}\n", sys.stderr))


def write_to_stderr(text: str) -> None:
    """Write on stderr just so; work goes on where nobody can read it."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO | None) -> None:
    """Let what is still to be written to a stream vanish, so that the interpreter does not stumble over it."""
    if stream is None:
        return
    target = os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, stream.fileno())
    os.close(target)


@contextmanager
def result_stream() -> Iterator[TextIO]:
    """Give stdout.

    Raises:
        ReaderGoneError: Its reader has seen enough.
        EmbedserveError: It is closed or cannot be written.
    """
    if sys.stdout is None:
        raise EmbedserveError("standard output is closed; there is nowhere to write the result")
    try:
        yield sys.stdout
    except BrokenPipeError:
        silence(sys.stdout)
        raise ReaderGoneError from None
    except OSError as error:
        silence(sys.stdout)
        raise EmbedserveError(f"cannot write to standard output: {error.strerror}") from None


def out(text: str) -> None:
    """Write a line of the result on stdout."""
    with result_stream() as stream:
        stream.write(for_stream(f"{text}\n", stream))


def out_bytes(data: bytes) -> None:
    """Write bytes of the result on stdout."""
    with result_stream() as stream:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()


def flush_out() -> None:
    """Bring what was written on stdout to its reader."""
    if sys.stdout is not None:
        with result_stream() as stream:
            stream.flush()


def out_json(value: Any) -> None:
    """Write a result as one line of JSON."""
    out_bytes(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS) + b"\n")


def be_quiet(*, debug: bool) -> None:
    """Keep the libraries below from talking while they load a model."""
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
    """Return an encoder; a folder is named by its full path, so that a collection finds it again.

    Args:
        model: ``nano``, a folder or a hub id.
        device: Where it computes.
        strategy: How hidden states become a vector, as `parse_spec` reads it; left out, the model's own or the mean.
    """
    from embedserve import Encoder
    from embedserve.spec import parse_spec

    try:
        folder = Path(model).expanduser()
        name = str(folder.resolve()) if model != "nano" and folder.exists() else model
    except (OSError, RuntimeError):  # no name of a folder: the loader says what is wrong with it
        name = model
    source: str | EncoderSpec = name if strategy is None else parse_spec(strategy, backbone=name)
    return Encoder.load(source, device=device)


def numbered_lines(what: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of standard input; refuse blank lines and what is not UTF-8."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"no {what} given; pass it as an argument or pipe it in, one on each line", field=what)
    empty = True
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} of standard input is not UTF-8 at byte {error.start}", field=what
            ) from None
        if not line.strip():
            raise InputError(f"line {number} of standard input is empty; leave empty lines out", field=what)
        empty = False
        yield number, line
    if empty:
        raise InputError(f"standard input is empty; pipe in one {what} on each line", field=what)


def stdin_lines() -> int | None:
    """Return how many lines standard input has left where it is a file, else None: a pipe can be read only once."""
    try:
        stream = sys.stdin.buffer
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return None
        place = stream.tell()
        count = sum(1 for _ in stream)
        stream.seek(place)
    except (OSError, ValueError, AttributeError):  # closed, or in place of it something that is no file
        return None
    return count


def given_or_lines(given: list[str], what: str) -> Iterator[str]:
    """Yield the arguments, or the lines of standard input where there are none or the one argument is ``-``."""
    if given and given != ["-"]:
        for number, text in enumerate(given, start=1):
            if not text.strip():
                raise InputError(f"{what} {number} is empty; give it some words", field=what)
        yield from given
        return
    for _, line in numbered_lines(what):
        yield line


class Meter:
    """Progress on stderr: one line that renews itself on a terminal, a line every few seconds elsewhere.

    Args:
        label: The first stage, which begins now.
        every_s: Seconds between lines where stderr is no terminal.
        patience_s: Stages shorter than this are not shown at all.
    """

    def __init__(self, label: str, *, every_s: float = 5.0, patience_s: float = 0.0) -> None:
        self._live = is_terminal(sys.stderr)
        self._every = 0.1 if self._live else every_s
        self._patience = patience_s
        self._label = label
        self._started = self._shown = time.monotonic()
        self._last = ""

    def update(self, label: str, done: int, total: int | None, before: int = 0) -> None:
        """Show how far the stage ``label`` is; ``before`` of those done were so already, and count for no rate."""
        now = time.monotonic()
        if label != self._label:
            self.close()
            self._label, self._started, self._shown = label, now, now
        self._last = self._line(label, done, total, now - self._started, before)
        if now - self._shown >= max(self._every, self._patience if self._shown == self._started else 0):
            self._shown = now
            self._write()

    def close(self) -> None:
        """Show the last state of the stage and end its line."""
        if self._last and time.monotonic() - self._started >= self._patience:
            self._write()
            if self._live:
                write_to_stderr("\n")
        self._last = ""

    def say(self, text: str) -> None:
        """Write a remark; the line of a terminal goes on below it."""
        write_to_stderr(f"\r{text}\x1b[K\n{self._last}" if self._live else f"{text}\n")

    def _write(self) -> None:
        write_to_stderr(f"\r{self._last}\x1b[K" if self._live else f"{self._last}\n")

    @staticmethod
    def _line(label: str, done: int, total: int | None, spent: float, before: int) -> str:
        rate = (done - before) / spent if spent > 0.05 else 0.0
        speed = f"  {rate_text(rate)}" if rate else ""
        if total is None:
            return f"{label}  {done:,}{speed}"
        filled = 24 * done // max(total, 1)
        bar = "█" * filled + "░" * (24 - filled)
        left = f"  ETA {clock((total - done) / rate)}" if rate and done < total else f"  {clock(spent)}"
        return f"{label}  {bar} {100 * done // max(total, 1):3d}%  {done:,}/{total:,}{speed}{left}"


class JsonMeter:
    """Progress on stderr for programs: a line of JSON now and then."""

    EVERY_S = 0.2

    def __init__(self) -> None:
        self._stage, self._started, self._shown = "", 0.0, 0.0
        self._last: dict[str, Any] = {}

    def update(self, label: str, done: int, total: int | None, before: int = 0) -> None:
        """Tell how far the stage ``label`` is; ``before`` of those done count for no rate."""
        now = time.monotonic()
        if label != self._stage:
            self.close()
            self._stage, self._started, self._shown = label, now, 0.0
        spent = now - self._started
        rate = (done - before) / spent if spent > 0.05 else 0.0
        eta = round((total - done) / rate, 1) if rate and total is not None else None
        self._last = {"stage": label, "done": done, "total": total, "resumed": before, "rate": round(rate, 1)}
        self._last["eta_s"] = eta
        if now - self._shown >= self.EVERY_S:
            self._shown = now
            self.close()

    def close(self) -> None:
        """Tell what was not told yet."""
        if self._last:
            write_to_stderr(orjson.dumps(self._last).decode() + "\n")
        self._last = {}


def rate_text(rate: float) -> str:
    """Return things per second, or per minute where they are few."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def stop(code: int) -> NoReturn:
    """Leave a command with an exit code and nothing more to say."""
    import typer

    raise typer.Exit(code)
