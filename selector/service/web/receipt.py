"""How long a request has waited in the server before the application saw it."""

from __future__ import annotations

import threading
import time

_local = threading.local()


def note_wait(seconds: float) -> None:
    """Called by the server on the thread that is about to answer the request."""
    _local.waited = seconds


def received_at() -> float:
    """When the request was there to be answered, in monotonic seconds; asked once, when the application begins with it.

    The time between its first bytes and a free thread counts, the time in which the client had sent nothing does not.
    """
    waited = getattr(_local, "waited", 0.0)
    _local.waited = 0.0
    return time.monotonic() - waited
