"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere, or lines of JSON for programs."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import orjson

from api.cli.console import is_terminal, write_to_stderr

BAR_WIDTH = 24


class ProgressMeter(Protocol):
    """Shows how far a command is."""

    def update(self, stage: str, done: int, total: int | None, resumed: int = 0) -> None:
        """Set the progress of a stage; ``resumed`` of ``done`` were done by an earlier run and count for no rate."""
        ...

    def close(self) -> None:
        """Show the last state."""
        ...


class Meter:
    """Progress for people: one line, redrawn on a terminal, else a new line every few seconds.

    Args:
        stage: The first stage, which starts now.
        every_s: Seconds between lines if stderr is not a terminal.
        patience_s: Stages shorter than this are not shown.
    """

    def __init__(self, stage: str, *, every_s: float = 5.0, patience_s: float = 0.0) -> None:
        self._is_terminal = is_terminal(sys.stderr)
        self._every_s = 0.1 if self._is_terminal else every_s
        self._patience_s = patience_s
        self._stage = stage
        self._start = self._shown = time.monotonic()
        self._line = ""

    def update(self, stage: str, done: int, total: int | None, resumed: int = 0) -> None:
        """Set the progress of a stage; ``resumed`` of ``done`` were done by an earlier run and count for no rate."""
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._start, self._shown = stage, now, now
        self._line = progress_line(stage, done, total, now - self._start, resumed)
        if now - self._shown >= max(self._every_s, self._patience_s if self._shown == self._start else 0):
            self._shown = now
            self._write()

    def close(self) -> None:
        """Show the last state of the stage and end its line."""
        if self._line and time.monotonic() - self._start >= self._patience_s:
            self._write()
            if self._is_terminal:
                write_to_stderr("\n")
        self._line = ""

    def say(self, text: str) -> None:
        """Write a message; on a terminal, redraw the progress below it."""
        write_to_stderr(f"\r{text}\x1b[K\n{self._line}" if self._is_terminal else f"{text}\n")

    def _write(self) -> None:
        write_to_stderr(f"\r{self._line}\x1b[K" if self._is_terminal else f"{self._line}\n")


class JsonMeter:
    """Progress for programs: a line of JSON at most every ``EVERY_S`` seconds."""

    EVERY_S = 0.2

    def __init__(self) -> None:
        self._stage, self._start, self._shown = "", 0.0, 0.0
        self._unwritten: dict[str, Any] = {}

    def update(self, stage: str, done: int, total: int | None, resumed: int = 0) -> None:
        """Set the progress of a stage; ``resumed`` of ``done`` were done by an earlier run and count for no rate."""
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._start, self._shown = stage, now, 0.0
        rate = rate_of(done - resumed, now - self._start)
        eta_s = round((total - done) / rate, 1) if rate and total is not None else None
        self._unwritten = {"stage": stage, "done": done, "total": total, "resumed": resumed, "rate": round(rate, 1)}
        self._unwritten["eta_s"] = eta_s
        if now - self._shown >= self.EVERY_S:
            self._shown = now
            self.close()

    def close(self) -> None:
        """Write the last state, if it is not written yet."""
        if self._unwritten:
            write_to_stderr(orjson.dumps(self._unwritten).decode() + "\n")
        self._unwritten = {}


def progress_line(stage: str, done: int, total: int | None, seconds: float, resumed: int) -> str:
    """Return stage, bar, counts, rate and remaining time as one line."""
    rate = rate_of(done - resumed, seconds)
    rate_part = f"  {rate_text(rate)}" if rate else ""
    if total is None:
        return f"{stage}  {done:,}{rate_part}"
    filled = BAR_WIDTH * done // max(total, 1)
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    time_part = f"  ETA {clock((total - done) / rate)}" if rate and done < total else f"  {clock(seconds)}"
    return f"{stage}  {bar} {100 * done // max(total, 1):3d}%  {done:,}/{total:,}{rate_part}{time_part}"


def rate_of(count: int, seconds: float) -> float:
    """Return the rate per second; 0 in the first moments, when it says nothing."""
    return count / seconds if seconds > 0.05 else 0.0


def rate_text(rate: float) -> str:
    """Return a rate per second, or per minute if it is low."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"


def clock(seconds: float) -> str:
    """Return a duration as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
