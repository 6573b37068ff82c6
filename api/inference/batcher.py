"""One thread that computes for one model: token rows in, batches of like lengths, to each caller its own result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING

import numpy as np

from api.http.error_responses import ApiError
from api.inference.request_queue import Answer, Lanes, OnPart, Part, Request
from api.telemetry.batch_report import BatchReport
from embedserve.batching import token_batches
from embedserve.errors import DeviceError, EmbedserveError, OverloadedError
from embedserve.types import Encoded, TokenRows

if TYPE_CHECKING:
    from embedserve import Encoder

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 300
MAX_TURNS = 64
QUIET_TURNS = 3  # to hand out answers, to write them, to read what callers send next
TURN_S = 0.05  # a loop that takes longer is not waited for
MEMORY = 0.9  # weight that what was measured keeps with each batch


class Batcher:
    """Runs the rows of many requests through one encoder, in one thread, as soon as it is idle.

    A batch starts from the request whose turn it is in the best lane, and takes rows of like length of the others in
    that lane. A lane that was passed by often has its turn. The queue is counted in tokens of whole requests: one that
    would take it past ``limit`` is refused, unless nothing is waiting. So while the other lanes are empty an answer
    takes at most as long as ``limit`` tokens and a batch do.

    Args:
        encoder: What computes; ``tokenize`` may run in other threads, everything else runs in this one.
        limit: Tokens that may wait or run at the same time.
        name: Of the thread.
        observe: Called in the thread after each batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        limit: int,
        name: str = "compute",
        observe: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.encoder, self.limit, self.observe = encoder, limit, observe
        self.loop: asyncio.AbstractEventLoop | None = None  # the one that submits, if one does
        self.last_success: float | None = None
        self.failure: DeviceError | None = None  # the device is lost
        self._lanes = Lanes()
        self._pending = 0
        self._done_tokens = self._done_s = 0.0  # measured lately; their quotient is the speed
        self._expected = self._came = 0  # short requests on their way, and those of them that are here
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Tokens of the requests that have no answer yet."""
        return self._pending

    def waiting(self) -> dict[str, int]:
        """Return the requests that wait in each lane."""
        return self._lanes.waiting()

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens computed a second, lately; None before the first batch."""
        return self._done_tokens / self._done_s if self._done_s else None

    def check_room(self, cost: int = 0, coming: int = 0) -> None:
        """Raise where ``cost`` more tokens cannot be taken: `OverloadedError`, or 503 at the end.

        ``coming`` are tokens of others that are on their way and count as waiting.
        """
        if self.failure is not None:
            raise self.failure
        if self._closing:
            raise ApiError(503, "shutting_down", "the server is shutting down; send the request to another")
        waiting = self._pending + coming
        if waiting and waiting + max(cost, 1) > self.limit:
            raise self._overloaded(max(cost, 1), waiting)

    def submit(self, rows: TokenRows, priority: str = "document", on_part: OnPart | None = None) -> Future[Answer]:
        """Queue rows and return the future of their answer; cancelling it takes what waits out of the queue.

        Args:
            rows: At least one.
            priority: ``query``, ``document`` or ``bulk``; ``urgent`` goes first, and past the limit.
            on_part: Called in the compute thread with places and vectors when a batch with some of the rows is done.
        """
        lengths = rows.lengths
        cost = int(lengths.sum())
        request = Request(rows, lengths, np.argsort(-lengths, kind="stable"), on_part, missing=len(rows), cost=cost)
        with self._changed:
            if priority != "urgent" or self.failure is not None or self._closing:
                self.check_room(cost)
            self._pending += cost
            self._lanes.put(request, priority, self.limit)
            self._changed.notify()
        request.future.add_done_callback(lambda _: self._forget(request, priority))
        return request.future

    def expect(self) -> None:
        """Say that a short request is being tokenised: a batch that begins now waits for it, and for none after it."""
        with self._changed:
            self._expected += 1

    def came(self) -> None:
        """Say that a request that was expected is queued, or will not be."""
        with self._changed:
            self._came += 1
            self._changed.notify()

    def close(self) -> None:
        """Finish what is queued, take nothing more, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _overloaded(self, cost: int, waiting: int) -> OverloadedError:
        """Return the refusal; it says when there will be room, at the speed measured lately."""
        too_many = min(waiting, waiting + cost - self.limit)
        speed = self.tokens_per_second
        wait = min(MAX_RETRY_AFTER_S, max(1, math.ceil(too_many / speed if speed else 1.0)))
        return OverloadedError(
            f"{waiting:,} tokens are waiting and {cost:,} more would pass the limit of {self.limit:,}; "
            f"try again in {wait} s",
            retry_after_s=wait,
        )

    def _forget(self, request: Request, lane: str) -> None:
        """Take what still waits of a request that has its answer or whose caller has gone out of the queue."""
        with self._changed:
            self._lanes.drop(request, lane)
            self._uncount(request)

    def _uncount(self, request: Request) -> None:
        """Count a request no longer; until all of it is done it counts as a whole, or more and more would come in."""
        with self._changed:
            self._pending -= request.cost
            request.cost = 0

    def _gather(self) -> None:
        """Let the event loop hand out the last answers and read who comes back, until nobody does or a batch is full.

        No clock is waited for: a few turns of the loop, which it has to make anyway. Without them the first to come
        back would go alone, and the others after it.
        """
        full = self.encoder.batch_tokens * self.encoder.workers
        quiet, seen = 0, self._pending
        for _ in range(MAX_TURNS):
            if self.loop is None or quiet == QUIET_TURNS or seen >= full or self._closing:
                return
            turned = threading.Event()
            try:
                self.loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # the loop is closed
                return
            if not turned.wait(TURN_S):
                return
            quiet, seen = (quiet + 1 if self._pending == seen else 0), self._pending

    def _work(self) -> None:
        crowd = False  # whether several callers were here last
        while True:
            with self._changed:
                crowd = crowd or bool(self._lanes)
                while not self._lanes and not self._closing:
                    self._changed.wait()
            if crowd:
                self._gather()
            with self._changed:
                goal = self._expected
                while self._came < goal and self._lanes and not self._closing:
                    self._changed.wait()
                if not self._lanes:
                    if self._closing:
                        return
                    continue
                batch = self._lanes.take(self.encoder.batch_tokens, self.encoder.workers)
            crowd = len(batch) > 1
            try:
                self._run(batch)
            except BaseException as error:  # a fault of ours: those in the batch are told, the thread goes on
                logger.exception("a batch failed outside the encoder")
                for request, _ in batch:
                    _refuse(request, error)

    def _run(self, batch: list[Part]) -> None:
        """Compute one batch; where it fails, each request's rows by themselves."""
        started = time.monotonic()
        for request, _ in batch:
            if request.queue_s is None:
                request.queue_s = started - request.arrived
        parts = [request.rows.take(places) if len(request.rows) > 1 else request.rows for request, places in batch]
        rows = TokenRows.concatenate(parts) if len(parts) > 1 else parts[0]
        try:
            found = self.encoder.encode_rows(rows)
        except DeviceError as error:
            self._lose(batch, error)
        except BaseException as error:  # it is a caller's, who waits; this thread goes on for the others
            if len(batch) > 1:
                for part in batch:
                    self._run([part])
                return
            _refuse(batch[0][0], error)
        else:
            report = self._settle(batch, rows, time.monotonic() - started)
            self._deliver(batch, found)
            if self.observe is not None:
                self.observe(report)

    def _settle(self, batch: list[Part], rows: TokenRows, seconds: float) -> BatchReport:
        """Count a batch that took ``seconds``, and return what it was."""
        lengths = rows.lengths
        tokens = int(lengths.sum())
        self.last_success = time.monotonic()
        self._done_tokens = MEMORY * self._done_tokens + tokens
        self._done_s = MEMORY * self._done_s + seconds
        for request, _ in batch:
            request.compute_s += seconds
        parts = token_batches(lengths, self.encoder.batch_tokens)
        padded = sum(len(part) * int(lengths[part].max()) for part in parts)
        waits = tuple(request.queue_s or 0.0 for request, _ in batch if not request.parts)
        return BatchReport(len(lengths), tokens, padded, seconds, waits)

    def _deliver(self, batch: list[Part], found: Encoded) -> None:
        """Hand each request its rows, and its answer where these were the last."""
        start = 0
        for request, places in batch:
            part = found.take(np.arange(start, start + len(places))) if len(batch) > 1 else found
            start += len(places)
            request.parts.append((places, part))
            request.missing -= len(places)
            if request.on_part is not None and not request.future.done():
                request.on_part(places, part)
            if not request.missing:
                self._uncount(request)
                _set(request, Answer(_whole(request.parts), request.queue_s or 0.0, request.compute_s))

    def _lose(self, batch: list[Part], error: DeviceError) -> None:
        """Refuse everything from now on."""
        logger.critical("the device is lost: %s", error.message)
        with self._changed:
            self.failure = error
            left = self._lanes.all()
        for request in {*left, *(request for request, _ in batch)}:
            _refuse(request, error)


def _whole(parts: list[tuple[np.ndarray, Encoded]]) -> Encoded:
    """Return the rows of all parts in the order of their places."""
    places, found = parts[0]
    if len(parts) > 1:
        places, found = np.concatenate([own for own, _ in parts]), Encoded.concatenate([own for _, own in parts])
    return found if len(places) == 1 else found.take(np.argsort(places, kind="stable"))


def _set(request: Request, answer: Answer) -> None:
    with contextlib.suppress(InvalidStateError):  # the caller has gone
        request.future.set_result(answer)


def _refuse(request: Request, error: BaseException) -> None:
    try:
        request.future.set_exception(error)
    except InvalidStateError:  # the caller has gone
        if not isinstance(error, EmbedserveError):
            logger.warning("a batch failed whose caller has gone", exc_info=error)
