"""Start servers, each in its own process with one torch thread, and read their processor time and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
# Module benchmarks.serving.NAME_server -> the package it needs.
PEERS = {"naive": "fastapi", "batched": "batched", "litserve": "litserve"}
SERVERS = ("embedserve", *PEERS)
STOP_S = 30.0  # grace period before a server is killed


@dataclass(frozen=True)
class RunningServer:
    """A server that accepts requests.

    Attributes:
        host: Address of its socket.
        port: Port of its socket.
        pid: Its first process, the session leader of the others.
        batching: Its description of its batching; empty for embedserve.
    """

    host: str
    port: int
    pid: int
    batching: str = ""


def lacks(name: str) -> str | None:
    """Return the missing package that server ``name`` needs; None if it is installed."""
    package = PEERS.get(name, "embedserve")
    try:
        version(package)
    except PackageNotFoundError:
        return package
    return None


@contextmanager
def serving(
    model: str, name: str = "embedserve", data_dir: Path | None = None, **settings: str
) -> Iterator[RunningServer]:
    """Start a server, yield it once it listens, and stop all its processes afterwards.

    Args:
        model: Model as on the command line.
        name: One of `SERVERS`.
        data_dir: Folder of collections, for embedserve. Default: an empty temporary folder.
        settings: ``EMBEDSERVE_…`` settings, for embedserve.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"benchmarks.serving.{name}_server", model]
        if name == "embedserve":
            command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--json"]
            command += ["--model", model, "--data-dir", str(data_dir or folder), "--log-level", "warning"]
        environment = {**os.environ, **ONE_THREAD, **{f"EMBEDSERVE_{k.upper()}": v for k, v in settings.items()}}
        with subprocess.Popen(  # noqa: S603
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                assert process.stdout is not None
                line = next((text for text in process.stdout if text.startswith('{"address"')), None)
                if line is None:
                    raise RuntimeError(f"{name} exited before it listened; its output is above")
                address = urlparse((values := json.loads(line))["address"])
                yield RunningServer(
                    str(address.hostname), int(address.port or 0), process.pid, values.get("batching", "")
                )
            finally:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds(session: int) -> float:
    """Return the processor time of a session in seconds, including its terminated processes."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has just exited
            fields = stat.read_text().rsplit(") ", 1)[1].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))  # of the process, and of children it has waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
