"""The interface of the engines that encode shards: `ThreadEngine`, `ProcessEngine` and `RayEngine`."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from indexing.jobs.shard_work import ShardResult, ShardTask


class ShardEngine(Protocol):
    """Runs `make_shard` on workers."""

    @property
    def name(self) -> str:
        """``local`` or ``ray``, for the report."""
        ...

    @property
    def slots(self) -> int:
        """Number of shards encoded at the same time."""
        ...

    def submit(self, task: ShardTask) -> Future[ShardResult]:
        """Queue a shard for the next free worker."""
        ...

    def close(self) -> None:
        """Cancel the remaining shards and stop the workers."""
        ...
