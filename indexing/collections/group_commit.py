"""Group commit: concurrent requests are committed together by one of the waiting threads, the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar


class GroupedRequest:
    """A request in a `CommitGroup`; the leader sets ``done``."""

    def __init__(self) -> None:
        self.done = False
        self.leads = False
        self.turn = threading.Event()


R = TypeVar("R", bound=GroupedRequest)


class CommitGroup(Generic[R]):
    """Lets one thread at a time commit all waiting requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held briefly
        self._busy = False
        self.waiting: list[R] = []

    def submit(self, request: R, commit: Callable[[Sequence[R]], None]) -> None:
        """Return once ``request`` is done, by this thread or by another.

        Args:
            request: The request.
            commit: Commits a list of requests; all of them are done afterwards, even if it raises. Passed on each call
                rather than stored: a stored bound method would form a reference cycle and keep the writer's files open
                until the cyclic collector runs.
        """
        with self._lock:
            self.waiting.append(request)
            request.leads = not self._busy
            self._busy = True
        try:
            if not request.leads:
                request.turn.wait()
            if request.leads:
                self._lead(commit)
        except BaseException:  # Ctrl-C while waiting
            with self._lock:
                if request in self.waiting:
                    self.waiting.remove(request)
            raise
        finally:
            if request.leads:
                self._pass_on()

    def _lead(self, commit: Callable[[Sequence[R]], None]) -> None:
        with self._lock:
            requests, self.waiting = self.waiting, []
        try:
            commit(requests)
        finally:
            for request in requests:
                request.turn.set()

    def _pass_on(self) -> None:
        """Make the first waiting request the next leader."""
        with self._lock:
            self._busy = bool(self.waiting)
            if self.waiting:
                self.waiting[0].leads = True
                self.waiting[0].turn.set()
