"""The process of a job: how it is started, what it says, and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from api.settings import Settings

PATIENCE_S = 20.0  # until a job that was asked to end is killed


def command_of(settings: Settings, collection: str, arguments: Sequence[str], work: Path) -> list[str]:
    """Return the command that builds a collection.

    Args:
        settings: Of the service.
        collection: What is built.
        arguments: The source, the options of reading it, and the model; the default one where there is none.
        work: The folder of its shards.
    """
    options = ["--collection", collection, "--data-dir", str(settings.data_dir.resolve())]
    options += ["--job-dir", str(work.resolve()), "--device", settings.device]
    if not any(argument.startswith("--model=") for argument in arguments):  # as earlier versions kept them
        options += ["--model", settings.model, *(["--strategy", settings.strategy] if settings.strategy else [])]
    command = [sys.executable, "-m", "api.cli.job_child", "index", "build", *arguments, *options]
    return [*command, "--json", "--progress", "json"]


def start(command: Sequence[str], result: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a command that writes its result to a file and ends when this process does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=result, stderr=pipe, start_new_session=True)  # noqa: S603


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield what a process says on stderr until it closes that, and then give its pipes back."""
    assert process.stderr is not None and process.stdin is not None
    for line in process.stderr:
        yield line.decode(errors="replace")
    process.stderr.close()
    with suppress(OSError):
        process.stdin.close()


def read_line(line: str) -> tuple[dict[str, Any] | None, str]:
    """Return the progress that a line tells of, or else what went wrong by it."""
    try:
        values = json.loads(line)
    except ValueError:
        return None, line.strip()
    if isinstance(values, dict) and "stage" in values:
        return values, ""
    error = values.get("error") if isinstance(values, dict) else None
    return None, str(error.get("message", "")) if isinstance(error, dict) else ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill it where it does not."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ending(code: int) -> str:
    """Return how a process ended, in words."""
    return f"signal {-code}" if code < 0 else f"code {code}"
