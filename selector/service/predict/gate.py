"""`Gate`: so many runs at once as there are cores, a bounded queue before them, and no waiting that is in vain."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Literal

Reason = Literal["queue_full", "expected_wait", "deadline_passed", "too_late_to_fit"]
REASONS: tuple[Reason, ...] = ("queue_full", "expected_wait", "deadline_passed", "too_late_to_fit")
_SMOOTHING = 0.1  # of the pace, per run


class Overloaded(Exception):
    """Answered early instead of late. `retry_after_s`: whole seconds after which the queue is likely to have gone."""

    def __init__(self, reason: Reason, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.retry_after_s = reason, detail, max(1, ceil(retry_after_s))


@dataclass(eq=False)
class _Ticket:
    work: float  # examples times cores
    cores: int
    begun: float = field(default=0.0)


class Gate:
    """At most `slots` cores are used by runs at once; at most `waiting` further requests wait, in the order in which they came.

    How long a run will take is estimated from what an example took of late, so an expected wait is an estimate; before the
    first run has ended it is none.
    """

    def __init__(self, slots: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots, self.waiting = slots, waiting
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[_Ticket] = deque()
        self._running: list[_Ticket] = []
        self._pace: float | None = None  # core-seconds per example

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @contextmanager
    def entered(self, examples: int, cores: int, until: float) -> Iterator[None]:
        """Waits for its turn, at most until then (monotonic seconds). Raises Overloaded, at once where waiting is in vain."""
        cores = min(cores, self.slots)
        ticket = _Ticket(examples * cores, cores)
        self._wait(ticket, until)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(ticket)
                pace = (self._clock() - ticket.begun) * cores / ticket.work
                self._pace = pace if self._pace is None else self._pace + _SMOOTHING * (pace - self._pace)
                self._changed.notify_all()

    def expected_wait(self) -> float:
        """Seconds until a request that came now would run, by the latest pace."""
        with self._changed:
            return self._expected_wait()

    def _wait(self, ticket: _Ticket, until: float) -> None:
        with self._changed:
            if self._queue or not self._fits(ticket):
                self._refuse_what_is_in_vain(until)
                self._queue.append(ticket)
                try:
                    while self._queue[0] is not ticket or not self._fits(ticket):
                        left = until - self._clock()
                        if left <= 0:
                            message = "its turn did not come in time"
                            raise Overloaded("deadline_passed", message, self._expected_wait())
                        self._changed.wait(left if isfinite(left) else None)
                finally:
                    self._queue.remove(ticket)
                    self._changed.notify_all()
            elif until <= self._clock():
                raise Overloaded("too_late_to_fit", "it waited so long for a thread that no run would end in time")
            ticket.begun = self._clock()
            self._running.append(ticket)

    def _refuse_what_is_in_vain(self, until: float) -> None:
        expected = self._expected_wait()
        if len(self._queue) >= self.waiting:
            raise Overloaded("queue_full", f"{len(self._queue)} requests wait already", expected)
        left = until - self._clock()
        if expected >= left:
            message = f"the expected wait is {expected * 1e3:.3g} ms, {max(left, 0.0) * 1e3:.3g} ms are left"
            raise Overloaded("expected_wait" if left > 0 else "deadline_passed", message, expected)

    def _fits(self, ticket: _Ticket) -> bool:
        return sum(other.cores for other in self._running) + ticket.cores <= self.slots

    def _expected_wait(self) -> float:
        if self._pace is None:
            return 0.0
        now = self._clock()
        begun = sum(max(0.0, t.work * self._pace - (now - t.begun) * t.cores) for t in self._running)
        return (begun + self._pace * sum(ticket.work for ticket in self._queue)) / self.slots
