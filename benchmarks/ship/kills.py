"""Processes that are killed at any moment of an update and of going back: what they leave is the old version or the new one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from benchmarks.ship.bundles import Shipped, shipped
from exporter.bundle.verify import self_test
from selector.ship.parts import open_signed
from selector.ship.versions import rollback, signed_version

KILLS = 100
NOTES = {
    "kills": "SIGKILLs at moments drawn evenly over an update (pull --key of another version) or a rollback, of a process of "
    "its own; every second one is a rollback. Each starts where the one before was killed",
    "half": "of these, after how many what is at --out does not open with its signature, as version 1 or 2, or fails its "
    "self-test",
    "kills_that_came_too_late": "of these, how many processes had ended before",
}


def measure(kills: int = KILLS) -> dict[str, float]:
    with shipped() as bundles:
        out = bundles.scratch / "device" / "digits"
        bundles.fetch(bundles.first, out)
        bundles.fetch(bundles.second, out)
        durations = [_timed(bundles, out, back) for back in (True, False)]
        half = late = 0
        draw = random.Random(0)
        for number in range(kills):
            back = signed_version(out) == 2 and number % 2 == 1
            process = os.fork()
            if process == 0:
                _work(bundles, out, back)
                os._exit(0)
            time.sleep(draw.random() * durations[0 if back else 1])
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            late += os.WIFEXITED(status)
            try:
                found = open_signed(out, bundles.trust)
                half += signed_version(out) not in (1, 2)
                self_test(found)
            except Exception as error:
                print(f"after kill {number}: {error}")
                half += 1
        return {"kills": kills, "half": half, "kills_that_came_too_late": late}


def _work(bundles: Shipped, out: Path, back: bool) -> None:
    """Whatever it meets: what the killed one has left must not stop it."""
    try:
        if back:
            rollback(out)
        else:
            other = bundles.first if signed_version(out) == 2 else bundles.second
            bundles.fetch(other, out)
    except Exception as error:
        print(f"refused: {error}", flush=True)


def _timed(bundles: Shipped, out: Path, back: bool) -> float:
    begun = time.perf_counter()
    _work(bundles, out, back)
    return time.perf_counter() - begun
