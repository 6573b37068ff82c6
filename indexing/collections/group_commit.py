"""Group commit: writes that wait for one another are done together, by one of the threads that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar


class Waiting:
    """A request in a `Group`; whoever does it sets ``done``."""

    def __init__(self) -> None:
        self.done = False
        self.leads = False
        self.turn = threading.Event()


R = TypeVar("R", bound=Waiting)


class Group(Generic[R]):
    """Lets one thread at a time do all requests that wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for moments only
        self._busy = False
        self.waiting: list[R] = []

    def submit(self, request: R, do: Callable[[Sequence[R]], None]) -> None:
        """Return once ``request`` is done, by this thread or by another.

        Args:
            request: What is to be done.
            do: Does a list of requests; every one of them is done afterwards, whatever it raises. It is not kept: who
                owns the group would own itself, and the files it has open stay open until garbage is collected.
        """
        with self._lock:
            self.waiting.append(request)
            request.leads = not self._busy
            self._busy = True
        try:
            if not request.leads:
                request.turn.wait()
            if request.leads:
                self._lead(do)
        except BaseException:  # Ctrl-C while it waited
            with self._lock:
                if request in self.waiting:
                    self.waiting.remove(request)
            raise
        finally:
            if request.leads:
                self._pass_on()

    def _lead(self, do: Callable[[Sequence[R]], None]) -> None:
        with self._lock:
            requests, self.waiting = self.waiting, []
        try:
            do(requests)
        finally:
            for request in requests:
                request.turn.set()

    def _pass_on(self) -> None:
        """Let the first of those that wait do what waits by now."""
        with self._lock:
            self._busy = bool(self.waiting)
            if self.waiting:
                self.waiting[0].leads = True
                self.waiting[0].turn.set()
