"""The queue of one model: priority lanes, fair sharing within a lane, and the choice of the next batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from api.inference.length_window import window
from embedserve.types import Encoded, TokenRows

Priority = Literal["query", "document", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
LANES = ("urgent", *PRIORITIES)  # urgent: health checks
PATIENCE = {"document": 4, "bulk": 16}  # batches of better lanes that may skip a lane before it goes next
SHARES = 4  # maximum number of long requests that share with a short one
LOOK_AHEAD = 8  # budgets of waiting tokens that are searched for rows of similar length

OnPart = Callable[[np.ndarray, Encoded], None]


@dataclass(frozen=True)
class BatchedResult:
    """The result of one request: its rows in order, the seconds it waited, and the seconds its batches took."""

    encoded: Encoded
    queue_s: float
    compute_s: float


@dataclass(eq=False)
class QueuedRequest:
    """The rows of one caller and their progress.

    Attributes:
        rows: Token rows.
        lengths: (N,) int64, tokens of each row.
        waiting: (n,) int64, indices of the rows that are in no batch yet, longest first.
        on_part: Called with indices and vectors when a batch with some of the rows is done.
        future: The result.
        arrived: Arrival time in seconds.
        parts: Indices and vectors of finished rows.
        missing: Rows without a result.
        cost: Tokens that the request counts in the queue.
        waiting_tokens: Tokens of the rows in ``waiting``.
        deadline: Tokens served by the lane by which the last row should be in a batch.
        virtual_time: Position in the fair sharing of the lane; the smallest goes next.
        queue_s: Seconds until its first batch.
        compute_s: Seconds of its batches.
    """

    rows: TokenRows
    lengths: np.ndarray
    waiting: np.ndarray
    on_part: OnPart | None
    future: Future[BatchedResult] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    parts: list[tuple[np.ndarray, Encoded]] = field(default_factory=list)
    missing: int = 0
    cost: int = 0
    waiting_tokens: int = 0
    deadline: int = 0
    virtual_time: int = 0
    queue_s: float | None = None
    compute_s: float = 0.0


Part = tuple[QueuedRequest, np.ndarray]  # some rows of one request, by their indices in it


class Lanes:
    """Priority lanes; within a lane, start-time fair queuing over tokens.

    A request's virtual time starts at the lane's current one and advances by the tokens served to it, times the number
    of waiting requests (at most `SHARES`). A short request therefore waits for one batch of each long one, not for
    their ends. Deadline: ``limit`` tokens after arrival. If serving another request would make one miss its deadline,
    the oldest goes first; otherwise an overload would delay every request and finish none. Not thread-safe.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, dict[QueuedRequest, None]] = {lane: {} for lane in LANES}
        self._skipped = dict.fromkeys(LANES, 0)  # batches
        self._served = dict.fromkeys(LANES, 0)  # tokens

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def waiting(self) -> dict[str, int]:
        """Return the number of waiting requests by lane."""
        return {lane: len(requests) for lane, requests in self._lanes.items()}

    def all(self) -> list[QueuedRequest]:
        """Return every waiting request."""
        return [request for lane in self._lanes.values() for request in lane]

    def put(self, request: QueuedRequest, lane: str, limit: int) -> None:
        """Add a request to a lane; ``limit`` is the maximum number of waiting tokens, and sets the deadline."""
        tokens = int(request.lengths.sum())
        request.waiting_tokens, request.virtual_time = tokens, self._served[lane]
        request.deadline = self._served[lane] + max(limit, tokens)
        self._lanes[lane][request] = None

    def drop(self, request: QueuedRequest, lane: str) -> None:
        """Remove the waiting rows of a request."""
        self._lanes[lane].pop(request, None)
        request.waiting = request.waiting[:0]

    def _pick_lane(self) -> str:
        """Return the next lane: the best non-empty one, unless another was skipped too often."""
        used = [lane for lane in LANES if self._lanes[lane]]
        overdue = [lane for lane in used if self._skipped[lane] >= PATIENCE.get(lane, math.inf)]
        chosen = overdue[-1] if overdue and used[0] != "urgent" else used[0]
        for lane in LANES:
            self._skipped[lane] = self._skipped[lane] + 1 if lane in used and lane != chosen else 0
        return chosen

    def _slack(self, name: str) -> float:
        """Return the tokens that a lane may serve out of order without making any request miss its deadline."""
        slack, ahead = math.inf, self._served[name]
        for request in self._lanes[name]:
            ahead += request.waiting_tokens
            slack = min(slack, request.deadline - ahead)
        return slack

    def take(self, budget: int, workers: int) -> list[Part]:
        """Remove and return the next batch: rows of the next request, and rows of similar length of others.

        Args:
            budget: Tokens of one batch, padding included.
            workers: Batches that run in parallel; the rows fit this many.
        """
        name = self._pick_lane()
        lane, order, room = self._lanes[name], list(self._lanes[name]), workers * budget
        late = self._slack(name) < room
        if not late:
            order.sort(key=lambda request: request.virtual_time)  # stable: of equals the oldest comes first
        candidates = _candidates(order, room if late else LOOK_AHEAD * room)
        lengths = np.concatenate([request.lengths[request.waiting] for request in candidates])
        chosen = np.zeros(len(lengths), dtype=bool)
        if late:  # whatever their lengths; the encoder splits them into batches
            chosen[: max(1, np.searchsorted(lengths.cumsum(), room, side="right"))] = True
        else:
            chosen[window(lengths, 0, budget, workers)] = True
        batch: list[Part] = []
        shares = min(SHARES, len(lane))
        stops = np.cumsum([len(request.waiting) for request in candidates])
        for request, mask in zip(candidates, np.split(chosen, stops[:-1]), strict=True):
            if not mask.any():
                continue
            indices = request.waiting[mask]
            batch.append((request, indices))
            tokens = int(request.lengths[indices].sum())
            self._served[name] += tokens
            request.virtual_time += tokens * shares
            request.waiting_tokens -= tokens
            request.waiting = request.waiting[~mask]
            if not len(request.waiting):
                del lane[request]
        return batch


def _candidates(order: list[QueuedRequest], limit: int) -> list[QueuedRequest]:
    """Return the requests of the first one's task, in order, until they have more than ``limit`` tokens."""
    task, tokens = order[0].rows.task, 0
    candidates: list[QueuedRequest] = []
    for request in order:
        if request.rows.task == task:
            candidates.append(request)
            tokens += request.waiting_tokens
            if tokens > limit:
                break
    return candidates
