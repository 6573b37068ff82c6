"""One thread that computes: a bounded queue in front of it, fair turns, and to each caller its own result."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from api.errors import ApiError
from embedserve.errors import OverloadedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RETRY_AFTER_S = 300
MEMORY = 0.9  # weight that what was measured keeps with each step


@dataclass(eq=False)
class _Job:
    """Steps that belong to one caller; ``costs`` are the characters of each step."""

    steps: deque[Callable[[], Any]]
    costs: deque[int]
    future: Future[list[Any]]
    results: list[Any] = field(default_factory=list)


class ComputeThread:
    """Runs jobs of several steps in one thread, one step of each job in turn.

    The queue is counted in characters, which is what time depends on, not in requests or texts: a job that would
    take it past ``limit`` is refused at once, unless nothing is waiting. A job whose caller has gone leaves the queue
    before its next step.

    Args:
        name: Name of the thread.
        limit: Characters that may wait or run at the same time.
    """

    def __init__(self, name: str, *, limit: int) -> None:
        self.limit = limit
        self.last_success: float | None = None
        self._jobs: deque[_Job] = deque()
        self._pending = 0
        self._done_chars = self._done_s = 0.0  # measured lately; their quotient is the speed
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Characters that wait or run."""
        return self._pending

    def submit(self, steps: Sequence[tuple[int, Callable[[], T]]], *, urgent: bool = False) -> Future[list[T]]:
        """Queue a job and return the future of its results, one for each step.

        Args:
            steps: Each step's cost in characters, and the step.
            urgent: Go first, and past the limit; for health checks.
        """
        job = _Job(deque(run for _, run in steps), deque(cost for cost, _ in steps), Future())
        cost = sum(job.costs)
        with self._changed:
            if self._closing:
                raise ApiError(503, "shutting_down", "the server is shutting down; send the request to another")
            if not urgent and self._pending and self._pending + cost > self.limit:
                raise self._overloaded(cost)
            self._pending += cost
            (self._jobs.appendleft if urgent else self._jobs.append)(job)
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._forget(job))
        return job.future

    async def run(self, steps: Sequence[tuple[int, Callable[[], T]]], *, urgent: bool = False) -> list[T]:
        """Queue a job and wait for its results; cancelling the wait takes the job out of the queue."""
        return await asyncio.wrap_future(self.submit(steps, urgent=urgent))

    def close(self) -> None:
        """Finish what is queued, take nothing more, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _overloaded(self, cost: int) -> OverloadedError:
        """Return the refusal; it says when there will be room, at the speed measured lately."""
        too_many = min(self._pending, self._pending + cost - self.limit)
        seconds = too_many * self._done_s / self._done_chars if self._done_chars else 1.0
        wait = min(MAX_RETRY_AFTER_S, max(1, math.ceil(seconds)))
        return OverloadedError(
            f"{self._pending:,} characters are waiting and {cost:,} more would pass the limit of {self.limit:,}; "
            f"try again in {wait} s",
            retry_after_s=wait,
        )

    def _forget(self, job: _Job) -> None:
        """Take a cancelled job out of the queue."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._pending -= sum(job.costs)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            self._step(job)

    def _step(self, job: _Job) -> None:
        """Run one step of a job, then answer its caller or queue it again behind the others."""
        started = time.monotonic()
        failure: BaseException | None = None
        try:
            job.results.append(job.steps.popleft()())
        except BaseException as error:  # it is the caller's, who waits; this thread goes on for the others
            failure = error
        cost = job.costs.popleft()
        with self._changed:
            self._pending -= cost
            if failure is None:
                self.last_success = time.monotonic()
                if cost:
                    self._done_chars = MEMORY * self._done_chars + cost
                    self._done_s = MEMORY * self._done_s + self.last_success - started
            if failure is None and job.steps and not job.future.cancelled():
                self._jobs.append(job)
                return
            self._pending -= sum(job.costs)
        try:
            job.future.set_result(job.results) if failure is None else job.future.set_exception(failure)
        except InvalidStateError:  # the caller has gone
            if failure is not None:
                logger.warning("a step failed whose caller has gone", exc_info=failure)
