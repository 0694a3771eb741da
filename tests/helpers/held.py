"""`sortednet`, but that what has its turn in `POST /v1/predict` waits for as long as a file exists: run as a program, with the
file as its first argument. So requests are in flight for as long as a test wants, and not for as long as a machine is slow.

At most two cores, so that two requests take all of them on any machine.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sortednet
from selector.service.predict.gate import Gate


def hold_while_there_is(file: Path) -> None:
    entered = Gate.entered

    @contextmanager
    def held(gate: Gate, examples: int, cores: int, until: float) -> Iterator[None]:
        with entered(gate, examples, cores, until):
            while file.exists():
                time.sleep(0.01)
            yield

    Gate.entered = held  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    hold_while_there_is(Path(sys.argv.pop(1)))
    sortednet.app()
