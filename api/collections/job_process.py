"""The child process of a job: starting it, reading its progress, stopping it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PATIENCE_S = 20.0  # between SIGINT and SIGKILL


def start(plan: Path, result: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the build of a saved plan; it writes its result to a file and stops if this process dies."""
    command = [sys.executable, "-m", "api.cli.job_child", "index", "run-plan", str(plan), "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=result, stderr=pipe, start_new_session=True)  # noqa: S603


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield the lines of a process's stderr, then close its pipes."""
    assert process.stderr is not None and process.stdin is not None
    for line in process.stderr:
        yield line.decode(errors="replace")
    process.stderr.close()
    with suppress(OSError):
        process.stdin.close()


def read_line(line: str) -> tuple[dict[str, Any] | None, str]:
    """Return the progress in a line of stderr, or else the error message in it."""
    try:
        values = json.loads(line)
    except ValueError:
        return None, line.strip()
    if isinstance(values, dict) and "stage" in values:
        return values, ""
    error = values.get("error") if isinstance(values, dict) else None
    return None, str(error.get("message", "")) if isinstance(error, dict) else ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process; kill it if it does not exit in time."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)


def exit_reason(code: int) -> str:
    """Return how a process ended: ``signal 9`` or ``exit code 1``."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
