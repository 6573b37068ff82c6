"""The Ray engine: the same shards, encoded by actors of a cluster; lost actors are replaced.

It uses plain actors instead of Ray Data: a shard is one task, independent of Ray's blocks, and shards are encoded while
the source is still being read. If an actor is lost, another one encodes its shard again, and a new actor starts as soon
as a node has capacity.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from embedserve.errors import EmbedserveError, InputError
from indexing.jobs.local_engine import LoadEncoder, load_single
from indexing.jobs.shard_work import ShardResult, ShardTask, StoppedError, make_shard

PATIENCE_S = 600.0  # without any actor; loading a model or starting a node takes minutes
ATTEMPTS = 4  # per shard; a shard that kills four actors would kill all
TICK_S = 0.5


class ShardActor:
    """An actor with one encoder, which encodes one shard at a time."""

    def __init__(self, load: LoadEncoder, device: str) -> None:
        self._encoder = load_single(load, device)

    def ready(self) -> bool:
        """Return once the encoder is loaded."""
        return True

    def make(self, task: ShardTask) -> ShardResult:
        """Encode a shard."""
        return make_shard(self._encoder, task)


class RayEngine:
    """Shards encoded by ``replicas`` actors of a Ray cluster.

    Args:
        load: Called in each actor with its device; every node needs the packages and the model.
        replicas: Number of actors, each with one core, or one GPU if ``device`` is cuda. Default: as many as the
            cluster has capacity for.
        device: ``cpu``, ``cuda``, or ``auto``: GPUs if the cluster has enough of them.
        address: Address of a running cluster, or ``auto``. Default: join the cluster of this machine, or start one.
        patience_s: Seconds to wait without any actor.

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
        self._owns_cluster = not ray.is_initialized()
        if self._owns_cluster:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise EmbedserveError(f"no Ray cluster at {address}: {error}; start one with `ray start`") from None
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        on_gpu = device.startswith("cuda") or (device == "auto" and gpus >= (replicas or 1))
        self.slots = replicas = replicas or (gpus if on_gpu else int(resources.get("CPU", 1)))
        self.lost = 0
        self._patience, self._device, self._load = patience_s, "cuda" if on_gpu else "cpu", ray.put(load)
        # Not restarted by Ray: a restarted actor would wait for its own node while other nodes are idle.
        self._actor = ray.remote(ShardActor).options(num_cpus=1, num_gpus=int(on_gpu), max_restarts=0)
        self._idle: queue.Queue[Any] = queue.Queue()
        self._stop = threading.Event()
        self._alive: set[Any] = set()
        self._busy_count = 0
        self._lock = threading.Lock()
        self._starters = ThreadPoolExecutor(replicas, "ray-start")
        self._pool = ThreadPoolExecutor(replicas, "ray-shard")
        for _ in range(replicas):
            self._starters.submit(self._start)

    def submit(self, task: ShardTask) -> Future[ShardResult]:
        """Queue a shard for the next free actor."""
        return self._pool.submit(self._make, task)

    def _start(self) -> None:
        """Start an actor and add it to the idle ones once it is ready; start another if it is lost before that."""
        while not self._stop.is_set():
            actor = self._actor.remote(self._load, self._device)
            with self._lock:
                self._alive.add(actor)
            try:
                self._wait(actor.ready.remote())
            except StoppedError:
                return
            except self._ray.exceptions.RayTaskError as error:  # loading failed, and would fail in every actor
                self._idle.put(error.as_instanceof_cause())
                return
            except self._ray.exceptions.RayError as error:
                if getattr(error, "cause", None) is not None or "__init__" in str(error):
                    self._idle.put(EmbedserveError(f"an encoder actor could not start: {error}"))
                    return
                self._forget(actor)
                continue
            self._idle.put(actor)
            return

    def _wait(self, reference: Any) -> Any:
        """Return the value of a reference; raise `StoppedError` once the engine is closed."""
        while not self._stop.is_set():
            done, _ = self._ray.wait([reference], timeout=TICK_S)
            if done:
                return self._ray.get(reference)
        raise StoppedError

    def _next_actor(self) -> Any:
        """Wait for an idle actor and return it."""
        waited_s = 0.0
        while not self._stop.is_set():
            try:
                actor = self._idle.get(timeout=TICK_S)
            except queue.Empty:
                waited_s = 0.0 if self._is_busy() else waited_s + TICK_S
                if waited_s >= self._patience:
                    raise EmbedserveError(
                        f"no encoder actor started within {waited_s:.0f} seconds: the cluster has no free capacity; "
                        "add nodes and run the job again: it reuses the complete shards"
                    ) from None
                continue
            if isinstance(actor, Exception):
                self._idle.put(actor)
                raise actor
            return actor
        raise StoppedError

    def _is_busy(self) -> bool:
        with self._lock:
            return self._busy_count > 0

    @contextmanager
    def _counted_as_busy(self) -> Iterator[None]:
        with self._lock:
            self._busy_count += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy_count -= 1

    def _make(self, task: ShardTask) -> ShardResult:
        for _ in range(ATTEMPTS):
            actor = self._next_actor()
            try:
                with self._counted_as_busy():
                    result: ShardResult = self._wait(actor.make.remote(task))
            except self._ray.exceptions.RayTaskError as error:
                self._idle.put(actor)
                raise error.as_instanceof_cause() from None
            except self._ray.exceptions.RayError:  # the actor or its node is lost
                self.lost += 1
                self._forget(actor)
                with suppress(RuntimeError):  # the engine is being closed
                    self._starters.submit(self._start)
                continue
            self._idle.put(actor)
            return result
        raise EmbedserveError(
            f"{ATTEMPTS} encoder actors died on the same shard, probably out of memory; lower --memory or "
            "use nodes with more memory, and run the job again: it reuses the complete shards"
        )

    def _forget(self, actor: Any) -> None:
        with self._lock:
            self._alive.discard(actor)
        with suppress(Exception):
            self._ray.kill(actor)

    def close(self) -> None:
        """Stop the actors; shut the cluster down only if this engine started it."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._starters.shutdown(cancel_futures=True)
        for actor in list(self._alive):
            self._forget(actor)
        if self._owns_cluster:
            self._ray.shutdown()


def import_ray() -> Any:
    """Return the module; raise `InputError` with the install command if it is missing."""
    try:
        import ray
    except ImportError:
        raise InputError(
            "--engine ray needs Ray; install it with: pip install 'embedserve[ray]'", field="engine"
        ) from None
    return ray
