"""The local engine: shards made by threads of this process, or by processes with an encoder each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Event
from typing import Any, Protocol

from embedserve.errors import EmbedserveError
from indexing.base import TextEncoder
from indexing.jobs.shard_work import Made, ShardTask, make_shard

LoadEncoder = Callable[[str], TextEncoder]  # from a device; has to be picklable


class Engine(Protocol):
    """Where shards are made."""

    @property
    def name(self) -> str:
        """For the report: ``local`` or ``ray``."""
        ...

    @property
    def slots(self) -> int:
        """Shards made at the same time."""
        ...

    def submit(self, task: ShardTask) -> Future[Made]:
        """Begin a shard as soon as a worker is free."""
        ...

    def close(self) -> None:
        """Give up the shards that are not made yet, and the workers."""
        ...


class ThreadEngine:
    """One encoder in this process: a thread for each core, or two for a GPU, one reading and writing beside the other.

    On a CPU a thread makes a whole shard, one core to a matrix product: nothing is computed otherwise than elsewhere.

    Args:
        encoder: Safe to use from several threads.
        threads: Shards made at the same time.
    """

    name = "local"

    def __init__(self, encoder: TextEncoder, threads: int | None = None) -> None:
        on_cpu = getattr(getattr(encoder, "device", None), "type", "cpu") == "cpu"
        self.slots = threads or (cores() if on_cpu else 2)
        self._encoder, self._stop = encoder, Event()
        self._pool = ThreadPoolExecutor(self.slots, "shard", initializer=one_thread if on_cpu else None)

    def submit(self, task: ShardTask) -> Future[Made]:
        """Begin a shard as soon as a thread is free."""
        return self._pool.submit(make_shard, self._encoder, task, self._stop.is_set)

    def close(self) -> None:
        """Let running shards stop at their next block."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class ProcessEngine:
    """Several processes with an encoder each: one for each GPU, or parts of the cores.

    Args:
        load: Called in each process with its device.
        devices: One for each process, such as ``cuda:0`` and ``cuda:1``.
    """

    name = "local"

    def __init__(self, load: LoadEncoder, devices: list[str]) -> None:
        self.slots = len(devices)
        spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads and CUDA's state
        waiting = spawn.Queue()
        for device in devices:
            waiting.put(device)
        self._pool = ProcessPoolExecutor(self.slots, spawn, initializer=begin_process, initargs=(load, waiting))

    def submit(self, task: ShardTask) -> Future[Made]:
        """Begin a shard as soon as a process is free."""
        try:
            return self._pool.submit(make_here, task)
        except BrokenProcessPool:
            raise lost_process() from None

    def close(self) -> None:
        """End the processes; what they have not finished is made again next time."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
            process.join()


def lost_process() -> EmbedserveError:
    """Return the error for a process that ended in the middle of its work."""
    return EmbedserveError(
        "a worker process died, probably for want of memory; lower --replicas or --memory and run the job again: "
        "it goes on with the shards that are not made yet"
    )


_here: dict[str, Any] = {}


def begin_process(load: LoadEncoder, devices: Any) -> None:
    """Load the encoder of this process on a device that no other has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the job, which ends its processes itself
    try:
        _here["encoder"] = load_alone(load, devices.get())
    except Exception as error:  # raised here it would be lost: the pool says only that a process ended
        _here["error"] = error


def load_alone(load: LoadEncoder, device: str) -> TextEncoder:
    """Load the encoder of a process that makes one shard at a time; on a CPU it computes with one thread."""
    encoder = load(device)
    if device == "cpu" and "torch" in sys.modules:
        one_thread()
    return encoder


def make_here(task: ShardTask) -> Made:
    """Make a shard with the encoder of this process; raise what kept it from being loaded."""
    if "error" in _here:
        raise _here["error"]
    return make_shard(_here["encoder"], task)


def one_thread() -> None:
    """Let matrix products of this thread use one core."""
    import torch

    torch.set_num_threads(1)


def cores() -> int:
    """Return how many threads may compute: what torch was given, at most the cores of this process."""
    import torch

    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), here))
