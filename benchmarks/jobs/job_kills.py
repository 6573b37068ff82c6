"""The offline job killed at random moments beside one unbroken run: both must end with the same shards.

python -m benchmarks.jobs.job_kills SOURCE [--kills 5] [--shard-size 100] [--model nano]

SOURCE is anything that `embedserve index build` reads, such as a BEIR folder. A kill is SIGKILL, at a random moment
after a random shard. Prints the number of kills, how many shards each run left, and a digest of all shards of both.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.machine import describe

NAME = "killed"


def start(source: str, data: Path, size: int, model: str) -> subprocess.Popen[bytes]:
    """Begin the job in a process of its own."""
    command = [sys.executable, "-m", "api.cli", "index", "build", source, "-c", NAME, "--index", "exact"]
    options = ["--shard-size", str(size), "--model", model, "--data-dir", str(data)]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def shards_in(data: Path) -> list[Path]:
    """Return the records of the shards that are there, sorted."""
    return sorted((data / "jobs" / NAME / "shards").glob("??/*/shard.json"))


def digest_of(data: Path) -> str:
    """Return a digest of every file of every shard, names and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    shards = data / "jobs" / NAME / "shards"
    for path in sorted(path for path in shards.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(shards)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def kill_once(source: str, data: Path, size: int, model: str, more: int) -> bool:
    """Begin the job and kill it once it has made ``more`` shards and a little; return whether it was still running."""
    wanted = len(shards_in(data)) + more
    child = start(source, data, size, model)
    while child.poll() is None and len(shards_in(data)) < wanted:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    running = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    return running


def main() -> int:
    """Run, compare, print; the exit code is 1 where the shards differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs.job_kills", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    print(describe())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.perf_counter()
        if start(args.source, whole, args.shard_size, args.model).wait():
            raise RuntimeError("the unbroken run failed")
        spent, count = time.perf_counter() - began, len(shards_in(whole))
        print(f"unbroken: {count} shards, {spent:.0f} s, {digest_of(whole)}", flush=True)
        kills = 0
        for _ in range(args.kills):
            kills += kill_once(args.source, killed, args.shard_size, args.model, random.randint(1, max(1, count // 8)))
            print(f"killed {kills}: {len(shards_in(killed))} shards are there", flush=True)
        if start(args.source, killed, args.shard_size, args.model).wait():
            raise RuntimeError("the last run failed")
        same = digest_of(whole) == digest_of(killed)
        verdict = "the same" if same else "DIFFERENT"
        print(f"{kills} kills: {len(shards_in(killed))} shards, {digest_of(killed)}, {verdict}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
