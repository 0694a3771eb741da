"""When a request began to arrive, and how long it waited for a thread, before the application saw it."""

from __future__ import annotations

import threading
import time

_local = threading.local()


def note_wait(seconds: float, received: float) -> None:
    """Called by the server on the thread that is about to answer the request: how long it waited for that thread, and when its
    first byte came (monotonic seconds)."""
    _local.noted = seconds, received


def receipt() -> tuple[float, float]:
    """The wait for a thread, in seconds, and when the request's first byte came, in monotonic seconds; asked once, when the
    application begins with it.

    The time between its first byte and a free thread counts against a deadline, the time in which the client had sent nothing
    does not.
    """
    waited, received = getattr(_local, "noted", None) or (0.0, time.monotonic())
    _local.noted = None
    return waited, received
