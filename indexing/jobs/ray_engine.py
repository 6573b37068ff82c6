"""The Ray engine: the same shards, made by encoder actors on the nodes of a cluster; lost ones are replaced.

Plain actors and not Ray Data: a shard is one task, whatever blocks Ray would cut, and the source is still being read
while its first shards are made. An actor that is lost takes one shard with it, which another makes anew; in its place
a new actor is asked for, which begins as soon as some node has room.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from embedserve.errors import EmbedserveError, InputError
from indexing.jobs.local_engine import LoadEncoder, load_alone
from indexing.jobs.shard_work import Made, ShardTask, StoppedError, make_shard

PATIENCE_S = 600.0  # without one actor; loading a model or bringing a node up takes minutes
ATTEMPTS = 4  # at one shard: what ends four actors in turn would end every other
TICK_S = 0.5


class ShardMaker:
    """An actor: an encoder, and shards made with it one at a time."""

    def __init__(self, load: LoadEncoder, device: str) -> None:
        self._encoder = load_alone(load, device)

    def ready(self) -> bool:
        """Return once the encoder is loaded."""
        return True

    def make(self, task: ShardTask) -> Made:
        """Make a shard."""
        return make_shard(self._encoder, task)


class RayEngine:
    """Shards made by ``replicas`` actors of a Ray cluster.

    Args:
        load: Called in each actor with its device; every node needs the packages and the model that it names.
        replicas: Actors, each with one core, or one GPU where ``device`` is cuda; all the cluster has if None.
        device: ``cpu``, ``cuda``, or ``auto`` for GPUs where the cluster has enough.
        address: Of a running cluster, or ``auto``; None joins the one of this machine or starts one.
        patience_s: Seconds to wait with no actor at all.

    Raises:
        InputError: Ray is not installed.
        EmbedserveError: The cluster cannot be reached.
    """

    name = "ray"

    def __init__(
        self,
        load: LoadEncoder,
        replicas: int | None = None,
        device: str = "cpu",
        *,
        address: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        if replicas is not None and replicas < 1:
            raise InputError(f"replicas must be at least 1, got {replicas}", field="replicas")
        self._ray = ray = import_ray()
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise EmbedserveError(f"no Ray cluster at {address}: {error}; start one with `ray start`") from None
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        on_gpu = device.startswith("cuda") or (device == "auto" and gpus >= (replicas or 1))
        self.slots = replicas = replicas or (gpus if on_gpu else int(there.get("CPU", 1)))
        self.lost = 0
        self._patience, self._device, self._load = patience_s, "cuda" if on_gpu else "cpu", ray.put(load)
        # An actor is not brought back by Ray: it would wait for its node's room while others are idle.
        self._actor = ray.remote(ShardMaker).options(num_cpus=1, num_gpus=int(on_gpu), max_restarts=0)
        self._idle: queue.Queue[Any] = queue.Queue()
        self._stop = threading.Event()
        self._alive: set[Any] = set()
        self._working = 0
        self._lock = threading.Lock()
        self._starting = ThreadPoolExecutor(replicas, "ray-start")
        self._pool = ThreadPoolExecutor(replicas, "ray-shard")
        for _ in range(replicas):
            self._starting.submit(self._start)

    def submit(self, task: ShardTask) -> Future[Made]:
        """Begin a shard as soon as an actor is free."""
        return self._pool.submit(self._make, task)

    def _start(self) -> None:
        """Ask for an actor, and hand it on once it is ready; where it is lost before that, ask for another."""
        while not self._stop.is_set():
            actor = self._actor.remote(self._load, self._device)
            with self._lock:
                self._alive.add(actor)
            try:
                self._wait(actor.ready.remote())
            except StoppedError:
                return
            except self._ray.exceptions.RayTaskError as error:  # the encoder cannot be loaded: nor can it be elsewhere
                self._idle.put(error.as_instanceof_cause())
                return
            except self._ray.exceptions.RayError as error:
                if getattr(error, "cause", None) is not None or "__init__" in str(error):
                    self._idle.put(EmbedserveError(f"an encoder actor could not begin: {error}"))
                    return
                self._forget(actor)
                continue
            self._idle.put(actor)
            return

    def _wait(self, reference: Any) -> Any:
        """Return what a reference holds, or raise `StoppedError` once the engine is closed."""
        while not self._stop.is_set():
            done, _ = self._ray.wait([reference], timeout=TICK_S)
            if done:
                return self._ray.get(reference)
        raise StoppedError

    def _take(self) -> Any:
        """Return an idle actor, waiting for one."""
        waited = 0.0
        while not self._stop.is_set():
            try:
                actor = self._idle.get(timeout=TICK_S)
            except queue.Empty:
                waited = 0.0 if self._busy() else waited + TICK_S
                if waited >= self._patience:
                    raise EmbedserveError(
                        f"no encoder actor could begin for {waited:.0f} seconds: the cluster has no room for one; add "
                        "nodes and run the job again, which goes on with the shards that are not made yet"
                    ) from None
                continue
            if isinstance(actor, Exception):
                self._idle.put(actor)
                raise actor
            return actor
        raise StoppedError

    def _busy(self) -> bool:
        with self._lock:
            return self._working > 0

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1

    def _make(self, task: ShardTask) -> Made:
        for _ in range(ATTEMPTS):
            actor = self._take()
            try:
                with self._at_work():
                    made: Made = self._wait(actor.make.remote(task))
            except self._ray.exceptions.RayTaskError as error:
                self._idle.put(actor)
                raise error.as_instanceof_cause() from None
            except self._ray.exceptions.RayError:  # the actor, its node or its memory is lost
                self.lost += 1
                self._forget(actor)
                with suppress(RuntimeError):  # the engine is being closed
                    self._starting.submit(self._start)
                continue
            self._idle.put(actor)
            return made
        raise EmbedserveError(
            f"{ATTEMPTS} encoder actors died in turn over one shard, probably for want of memory; lower --memory or "
            "give nodes more, and run the job again: it goes on with the shards that are not made yet"
        )

    def _forget(self, actor: Any) -> None:
        with self._lock:
            self._alive.discard(actor)
        with suppress(Exception):
            self._ray.kill(actor)

    def close(self) -> None:
        """End the actors, and leave the cluster where this engine joined it."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._starting.shutdown(cancel_futures=True)
        for actor in list(self._alive):
            self._forget(actor)
        if self._started:
            self._ray.shutdown()


def import_ray() -> Any:
    """Return the module, or raise `InputError` saying how to install it."""
    try:
        import ray
    except ImportError:
        raise InputError(
            "--engine ray needs Ray; install it with: pip install 'embedserve[ray]'", field="engine"
        ) from None
    return ray
