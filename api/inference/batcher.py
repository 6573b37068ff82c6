"""One compute thread per model: token rows in, batches of similar lengths, and each caller's own result out."""

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
from api.inference.request_queue import BatchedResult, Lanes, OnPart, Part, QueuedRequest
from api.telemetry.batch_report import BatchReport
from embedserve.batching import token_batches
from embedserve.errors import DeviceError, EmbedserveError, OverloadedError
from embedserve.types import Encoded, TokenRows

if TYPE_CHECKING:
    from embedserve import Encoder

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 300
MAX_TURNS = 64
QUIET_TURNS = 3  # turns of the event loop to deliver responses, to write them, and to read the next requests
TURN_S = 0.05  # a slower event loop is not waited for
DECAY = 0.9  # weight of earlier measurements with each batch


class Batcher:
    """Runs the rows of many requests through one encoder, in one thread, as soon as the encoder is idle.

    A batch starts with the next request of the highest-priority lane and is filled with rows of similar length from
    that lane. A lane that has been skipped too often goes next. The queue is counted in tokens of whole requests: a
    request that would exceed ``limit`` is rejected, unless the queue is empty. While the other lanes are empty, a
    result therefore takes at most as long as ``limit`` tokens and one batch.

    Args:
        encoder: ``tokenize`` may run in other threads, everything else runs in this one.
        limit: Maximum number of tokens that wait or run.
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
        self.loop: asyncio.AbstractEventLoop | None = None  # the event loop that submits, if one does
        self.last_success: float | None = None
        self.failure: DeviceError | None = None  # the device is lost
        self._lanes = Lanes()
        self._pending = 0
        self._done_tokens = self._done_s = 0.0  # decaying sums; their quotient is the rate
        self._expected = self._arrived = 0  # short requests being tokenised, and those of them that were queued
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Tokens of the requests without a result."""
        return self._pending

    def waiting(self) -> dict[str, int]:
        """Return the number of waiting requests by lane."""
        return self._lanes.waiting()

    @property
    def tokens_per_second(self) -> float | None:
        """Recent rate in real tokens per second; None before the first batch."""
        return self._done_tokens / self._done_s if self._done_s else None

    def check_room(self, cost: int = 0, coming: int = 0) -> None:
        """Raise if ``cost`` more tokens do not fit: `OverloadedError`, or 503 during shutdown.

        ``coming`` are tokens of other requests that are being tokenised and count as waiting.
        """
        if self.failure is not None:
            raise self.failure
        if self._closing:
            raise ApiError(503, "shutting_down", "the server is shutting down; send the request to another")
        waiting = self._pending + coming
        if waiting and waiting + max(cost, 1) > self.limit:
            raise self._overloaded(max(cost, 1), waiting)

    def submit(
        self, rows: TokenRows, priority: str = "document", on_part: OnPart | None = None
    ) -> Future[BatchedResult]:
        """Queue rows and return the future of their result; cancelling it removes the waiting rows from the queue.

        Args:
            rows: At least one.
            priority: ``query``, ``document`` or ``bulk``; ``urgent`` goes first and ignores the limit.
            on_part: Called in the compute thread with indices and vectors when a batch with some of the rows is done.
        """
        lengths = rows.lengths
        cost = int(lengths.sum())
        request = QueuedRequest(
            rows, lengths, np.argsort(-lengths, kind="stable"), on_part, missing=len(rows), cost=cost
        )
        with self._changed:
            if priority != "urgent" or self.failure is not None or self._closing:
                self.check_room(cost)
            self._pending += cost
            self._lanes.put(request, priority, self.limit)
            self._changed.notify()
        request.future.add_done_callback(lambda _: self._forget(request, priority))
        return request.future

    def expect(self) -> None:
        """Announce that a short request is being tokenised: a batch about to start waits for it."""
        with self._changed:
            self._expected += 1

    def arrived(self) -> None:
        """Report that an announced request is queued, or will not be."""
        with self._changed:
            self._arrived += 1
            self._changed.notify()

    def close(self) -> None:
        """Finish the queued requests, accept no more, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _overloaded(self, cost: int, waiting: int) -> OverloadedError:
        """Return the rejection, with the time until there is room at the recent rate."""
        excess = min(waiting, waiting + cost - self.limit)
        rate = self.tokens_per_second
        wait = min(MAX_RETRY_AFTER_S, max(1, math.ceil(excess / rate if rate else 1.0)))
        return OverloadedError(
            f"{waiting:,} tokens are waiting and {cost:,} more would pass the limit of {self.limit:,}; "
            f"try again in {wait} s",
            retry_after_s=wait,
        )

    def _forget(self, request: QueuedRequest, lane: str) -> None:
        """Remove the waiting rows of a request that has its result or whose caller disconnected."""
        with self._changed:
            self._lanes.drop(request, lane)
            self._uncount(request)

    def _uncount(self, request: QueuedRequest) -> None:
        """Stop counting a request. Until it is finished it counts in full, so that unfinished work stays bounded."""
        with self._changed:
            self._pending -= request.cost
            request.cost = 0

    def _gather(self) -> None:
        """Let the event loop deliver results and read new requests, until none arrive or a batch is full.

        This waits for a few turns of the event loop, which it has to make anyway, and for no timer. Without it the
        first caller to return would be computed alone, and the others after it.
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
        several_callers = False  # in the last batch or now
        while True:
            with self._changed:
                several_callers = several_callers or bool(self._lanes)
                while not self._lanes and not self._closing:
                    self._changed.wait()
            if several_callers:
                self._gather()
            with self._changed:
                goal = self._expected
                while self._arrived < goal and self._lanes and not self._closing:
                    self._changed.wait()
                if not self._lanes:
                    if self._closing:
                        return
                    continue
                batch = self._lanes.take(self.encoder.batch_tokens, self.encoder.workers)
            several_callers = len(batch) > 1
            try:
                self._run(batch)
            except BaseException as error:  # internal error: fail the batch, keep the thread
                logger.exception("a batch failed outside the encoder")
                for request, _ in batch:
                    _fail(request, error)

    def _run(self, batch: list[Part]) -> None:
        """Compute one batch; if it fails, retry the rows of each request separately."""
        start = time.monotonic()
        for request, _ in batch:
            if request.queue_s is None:
                request.queue_s = start - request.arrived
        parts = [request.rows.take(indices) if len(request.rows) > 1 else request.rows for request, indices in batch]
        rows = TokenRows.concatenate(parts) if len(parts) > 1 else parts[0]
        try:
            encoded = self.encoder.encode_rows(rows)
        except DeviceError as error:
            self._lose_device(batch, error)
        except BaseException as error:  # belongs to a caller; the thread continues
            if len(batch) > 1:
                for part in batch:
                    self._run([part])
                return
            _fail(batch[0][0], error)
        else:
            report = self._report(batch, rows, time.monotonic() - start)
            self._deliver(batch, encoded)
            if self.observe is not None:
                self.observe(report)

    def _report(self, batch: list[Part], rows: TokenRows, seconds: float) -> BatchReport:
        """Update the rate with a batch that took ``seconds``, and return its report."""
        lengths = rows.lengths
        tokens = int(lengths.sum())
        self.last_success = time.monotonic()
        self._done_tokens = DECAY * self._done_tokens + tokens
        self._done_s = DECAY * self._done_s + seconds
        for request, _ in batch:
            request.compute_s += seconds
        parts = token_batches(lengths, self.encoder.batch_tokens)
        padded = sum(len(part) * int(lengths[part].max()) for part in parts)
        waits = tuple(request.queue_s or 0.0 for request, _ in batch if not request.parts)
        return BatchReport(len(lengths), tokens, padded, seconds, waits)

    def _deliver(self, batch: list[Part], encoded: Encoded) -> None:
        """Give each request its rows, and set its result if these were the last."""
        start = 0
        for request, indices in batch:
            part = encoded.take(np.arange(start, start + len(indices))) if len(batch) > 1 else encoded
            start += len(indices)
            request.parts.append((indices, part))
            request.missing -= len(indices)
            if request.on_part is not None and not request.future.done():
                request.on_part(indices, part)
            if not request.missing:
                self._uncount(request)
                result = BatchedResult(_assemble(request.parts), request.queue_s or 0.0, request.compute_s)
                with contextlib.suppress(InvalidStateError):  # the caller disconnected
                    request.future.set_result(result)

    def _lose_device(self, batch: list[Part], error: DeviceError) -> None:
        """Reject every request from now on."""
        logger.critical("the device is lost: %s", error.message)
        with self._changed:
            self.failure = error
            waiting = self._lanes.all()
        for request in {*waiting, *(request for request, _ in batch)}:
            _fail(request, error)


def _assemble(parts: list[tuple[np.ndarray, Encoded]]) -> Encoded:
    """Return the rows of all parts in the order of their indices."""
    indices, encoded = parts[0]
    if len(parts) > 1:
        indices = np.concatenate([part for part, _ in parts])
        encoded = Encoded.concatenate([part for _, part in parts])
    return encoded if len(indices) == 1 else encoded.take(np.argsort(indices, kind="stable"))


def _fail(request: QueuedRequest, error: BaseException) -> None:
    try:
        request.future.set_exception(error)
    except InvalidStateError:  # the caller disconnected
        if not isinstance(error, EmbedserveError):
            logger.warning("a batch failed whose caller disconnected", exc_info=error)
