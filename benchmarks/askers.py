"""Threads that ask a service again and again until they are told to stop."""

from __future__ import annotations

import threading
from collections.abc import Sequence


class Askers:
    """Of these threads, each of which ends soon after `_stop` is set."""

    def __init__(self, threads: Sequence[threading.Thread]) -> None:
        self._threads, self._stop = list(threads), threading.Event()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns when all have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
