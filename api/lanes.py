"""Who goes next: requests that wait in lanes, and the batches that are taken out of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from api.window import window
from embedserve.types import Encoded, TokenRows

Priority = Literal["query", "document", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
LANES = ("urgent", *PRIORITIES)  # urgent: health checks
PATIENCE = {"document": 4, "bulk": 16}  # batches of better lanes that may pass a lane by before it has its turn
SHARES = 4  # long requests beside which a short one has its turn at once
LOOK_AHEAD = 8  # budgets of waiting tokens among which neighbours are looked for

OnPart = Callable[[np.ndarray, Encoded], None]


@dataclass(frozen=True)
class Answer:
    """A request's result: the texts in their order, the seconds it waited and those its batches took."""

    encoded: Encoded
    queue_s: float
    compute_s: float


@dataclass(eq=False)
class Request:
    """Rows of one caller, and what came of them so far; times in seconds."""

    rows: TokenRows
    lengths: np.ndarray
    waiting: np.ndarray  # places of the rows that are in no batch yet, longest first
    on_part: OnPart | None
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    parts: list[tuple[np.ndarray, Encoded]] = field(default_factory=list)
    missing: int = 0
    cost: int = 0  # tokens that it counts in the queue
    turn: int = 0  # the least goes next; see Lanes
    queue_s: float | None = None
    compute_s: float = 0.0

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the rows that are in no batch yet."""
        return int(self.lengths[self.waiting].sum())


Part = tuple[Request, np.ndarray]  # rows of one request, by their places in it


class Lanes:
    """Requests by priority; in a lane the oldest first, and a long one steps back by what was taken of it.

    A request comes in at the number of tokens that were taken from the lane before, and goes on by those taken of it,
    as many times as others wait, up to `SHARES`. So beside a few long ones a short one waits for a batch of each, not
    for their ends; and one that came early is not passed by all that come later, as where all share alike: then an
    overload keeps everybody waiting and finishes nobody. Not safe between threads.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, dict[Request, None]] = {lane: {} for lane in LANES}
        self._passed = dict.fromkeys(LANES, 0)
        self._taken = dict.fromkeys(LANES, 0)  # tokens

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def waiting(self) -> dict[str, int]:
        """Return how many requests wait in each lane."""
        return {lane: len(requests) for lane, requests in self._lanes.items()}

    def all(self) -> list[Request]:
        """Return every request that waits."""
        return [request for lane in self._lanes.values() for request in lane]

    def put(self, request: Request, lane: str) -> None:
        """Let a request wait in a lane."""
        request.turn = self._taken[lane]
        self._lanes[lane][request] = None

    def drop(self, request: Request, lane: str) -> None:
        """Take out what waits of a request."""
        self._lanes[lane].pop(request, None)
        request.waiting = request.waiting[:0]

    def _pick_lane(self) -> str:
        """Return the lane whose turn it is: the best one, unless another was passed by too often."""
        used = [lane for lane in LANES if self._lanes[lane]]
        overdue = [lane for lane in used if self._passed[lane] >= PATIENCE.get(lane, math.inf)]
        chosen = overdue[-1] if overdue and used[0] != "urgent" else used[0]
        for lane in LANES:
            self._passed[lane] = self._passed[lane] + 1 if lane in used and lane != chosen else 0
        return chosen

    def take(self, budget: int, workers: int) -> list[Part]:
        """Take out the next batch: rows of the request whose turn it is, and others of like length.

        Args:
            budget: Tokens of one batch, padding included.
            workers: Batches that run at the same time; what is taken fits so many.
        """
        name = self._pick_lane()
        lane = self._lanes[name]
        by_turn = sorted(lane, key=lambda request: request.turn)  # stable: the oldest of equals comes first
        head = by_turn[0]
        near: list[Request] = []
        tokens = 0
        for request in by_turn:
            if request.rows.task == head.rows.task:
                near.append(request)
                tokens += request.waiting_tokens
                if tokens > LOOK_AHEAD * workers * budget:
                    break
        lengths = np.concatenate([request.lengths[request.waiting] for request in near])
        chosen = np.zeros(len(lengths), dtype=bool)
        chosen[window(lengths, 0, budget, workers)] = True
        batch: list[Part] = []
        shares = min(SHARES, len(lane))
        stops = np.cumsum([len(request.waiting) for request in near])
        for request, own in zip(near, np.split(chosen, stops[:-1]), strict=True):
            if not own.any():
                continue
            places = request.waiting[own]
            batch.append((request, places))
            taken = int(request.lengths[places].sum())
            self._taken[name] += taken
            request.turn += taken * shares
            request.waiting = request.waiting[~own]
            if not len(request.waiting):
                del lane[request]
        return batch
