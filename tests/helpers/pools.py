"""A pool whose sessions are words."""

from __future__ import annotations

import threading
from typing import Any

from selector.run.pool import SessionPool

MEMORY = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0}


class Opener:
    """Opens what stands for a session; waits while `gate` is closed."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)

    def __call__(self, submodel: str) -> Any:
        self.waiting.release()
        assert self.gate.wait(30)
        if submodel == "broken":
            raise RuntimeError("cannot be opened")
        self.opened.append(submodel)
        return submodel.upper()


def pool_of(memory_mb: float | None = None) -> tuple[SessionPool[str], Opener]:
    opener = Opener()
    return SessionPool(opener, lambda name: MEMORY.get(name, 0.0), memory_mb), opener
