"""Who goes next: requests that wait in lanes, and the batches that are taken out of them."""

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
    left: int = 0  # tokens of the rows that are in no batch yet
    due: int = 0  # taken from its lane, so many tokens, it shall be in its last batch
    turn: int = 0  # the least goes next; see Lanes
    queue_s: float | None = None
    compute_s: float = 0.0


Part = tuple[Request, np.ndarray]  # rows of one request, by their places in it


class Lanes:
    """Requests by priority; in a lane turns are taken as long as nobody's wait is longer than that of a full queue.

    A request comes in at the number of tokens that were taken from the lane before, and goes on by those taken of it,
    as many times as others wait, up to `SHARES`. So beside a few long ones a short one waits for a batch of each, not
    for their ends. But every request is due ``limit`` tokens after it came, as it would be done if each were finished
    in its turn: where a batch of another's would make one late, the oldest go first. Otherwise an overload, in which
    the queue is always full, would keep everybody waiting and finish nobody. Not safe between threads.
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

    def put(self, request: Request, lane: str, limit: int) -> None:
        """Let a request wait in a lane; no more than ``limit`` tokens wait, unless it has more itself."""
        tokens = int(request.lengths.sum())
        request.left, request.turn = tokens, self._taken[lane]
        request.due = self._taken[lane] + max(limit, tokens)
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

    def _spare(self, name: str) -> float:
        """Return the tokens that may be taken of anybody in a lane, the oldest going first afterwards: none is late."""
        spare, ahead = math.inf, self._taken[name]
        for request in self._lanes[name]:
            ahead += request.left
            spare = min(spare, request.due - ahead)
        return spare

    def take(self, budget: int, workers: int) -> list[Part]:
        """Take out the next batch: rows of the request whose turn it is, and others of like length.

        Args:
            budget: Tokens of one batch, padding included.
            workers: Batches that run at the same time; what is taken fits so many.
        """
        name = self._pick_lane()
        lane, order, room = self._lanes[name], list(self._lanes[name]), workers * budget
        late = self._spare(name) < room
        if not late:
            order.sort(key=lambda request: request.turn)  # stable: the oldest of equals comes first
        head = order[0]
        near: list[Request] = []
        tokens = 0
        for request in order:
            if request.rows.task == head.rows.task:
                near.append(request)
                tokens += request.left
                if tokens > (room if late else LOOK_AHEAD * room):
                    break
        lengths = np.concatenate([request.lengths[request.waiting] for request in near])
        chosen = np.zeros(len(lengths), dtype=bool)
        if late:  # whatever their lengths: the encoder parts them
            chosen[: max(1, np.searchsorted(lengths.cumsum(), room, side="right"))] = True
        else:
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
            request.left -= taken
            request.waiting = request.waiting[~own]
            if not len(request.waiting):
                del lane[request]
        return batch
