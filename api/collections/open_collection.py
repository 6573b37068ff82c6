"""The state of one collection that the service has opened or tried to open."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embedserve.errors import EmbedserveError

if TYPE_CHECKING:
    from indexing import Collection

Stamp = tuple[int | str, ...]  # of files on disk; changes with every write
RETRY_EVERY_S = 5.0
RETRY_AT_MOST_EVERY_S = 600.0


@dataclass(eq=False)
class OpenCollection:
    """An open collection with the number of its users; closed once it is retired and unused."""

    collection: Collection
    users: int = 0
    retired: bool = False

    def retire(self) -> None:
        """Close the collection, after its last use."""
        self.retired = True
        self.close_unused()

    def close_unused(self) -> None:
        """Close the collection if it is retired and unused."""
        if self.retired and not self.users:
            self.collection.close()


@dataclass(eq=False)
class CollectionEntry:
    """What the service knows of one collection name.

    Attributes:
        opened: What is searched: the newest readable state.
        stamp: Stamp of the last state on disk that was tried.
        error: Why that state cannot be read; ``opened`` is then an older state or None.
        failures: Number of consecutive failed attempts.
        tried: Monotonic time of the end of the last attempt.
        opening: The running attempt.
        written: Whether ``opened`` is this server's writer, and therefore always the newest state.
    """

    opened: OpenCollection | None = None
    stamp: Stamp | None = None
    error: EmbedserveError | None = None
    failures: int = 0
    tried: float = 0.0
    opening: Future[None] | None = None
    written: bool = False

    def is_current(self, stamp: Stamp) -> bool:
        """Return whether nothing is to be done for a state on disk: it is open, or its retry is not due yet."""
        if self.stamp != stamp:
            return False
        wait_s = min(RETRY_EVERY_S * 2 ** min(self.failures - 1, 20), RETRY_AT_MOST_EVERY_S)
        return self.error is None or time.monotonic() - self.tried < wait_s

    def replace(self, opened: OpenCollection) -> None:
        """Search another state from now on; the previous one closes after its last use."""
        previous, self.opened = self.opened, opened
        if previous is not None:
            previous.retire()


@dataclass(frozen=True)
class CollectionState:
    """A collection on disk, as ``/info`` describes it; ``error`` with ``open`` means that an older build is served."""

    name: str
    status: Literal["open", "closed", "failed"]
    documents: int | None = None
    error: EmbedserveError | None = None
