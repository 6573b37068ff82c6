"""Servers under load, each in a process of its own with one thread for matrix products, and what they take."""

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
PEERS = {
    "naive": "fastapi",
    "batched": "batched",
    "litserve": "litserve",
}  # benchmarks.serve_NAME, the package it needs
SERVERS = ("embedserve", *PEERS)
STOP_S = 30.0  # after which a server that was asked to stop is killed


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        host: Where it listens.
        port: Where it listens.
        pid: Of its first process, which leads the session of all others.
        batching: How it says that it makes batches; empty for embedserve.
    """

    host: str
    port: int
    pid: int
    batching: str = ""


def lacks(name: str) -> str | None:
    """Return the package that a peer needs and that is not installed, or None."""
    package = PEERS.get(name, "embedserve")
    try:
        version(package)
    except PackageNotFoundError:
        return package
    return None


@contextmanager
def serving(model: str, name: str = "embedserve", data_dir: Path | None = None, **settings: str) -> Iterator[Server]:
    """Start a server of `SERVERS` and yield it once it listens; afterwards none of its processes is left.

    Args:
        model: What the command line takes for one.
        name: Which server.
        data_dir: Of its collections; an empty one unless given. For embedserve, as are ``settings``.
        settings: Of ``EMBEDSERVE_…``.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"benchmarks.serve_{name}", model]
        if name == "embedserve":
            command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--json"]
            command += ["--model", model, "--data-dir", str(data_dir or folder), "--log-level", "warning"]
        environment = {**os.environ, **ONE_THREAD, **{f"EMBEDSERVE_{k.upper()}": v for k, v in settings.items()}}
        with subprocess.Popen(  # noqa: S603
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                assert process.stdout is not None
                told = next((line for line in process.stdout if line.startswith('{"address"')), None)
                if told is None:
                    raise RuntimeError(f"{name} ended before it listened; what it wrote is above")
                address = urlparse((values := json.loads(told))["address"])
                yield Server(str(address.hostname), int(address.port or 0), process.pid, values.get("batching", ""))
            finally:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds(session: int) -> float:
    """Return the processor time of a server: of all processes of its session, and of those that ended in it."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = stat.read_text().rsplit(") ", 1)[1].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))  # its own, and of the children that it has waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
