"""The clock that decisions go by: it never jumps, and it counts the time in which the device is suspended, where the system
has such a clock. A battery drains then too, and a plan's end comes nearer; `time.monotonic` stands still."""

from __future__ import annotations

import time


def seconds() -> float:
    """Since some moment; only differences mean something."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


def _boot_clock() -> int | None:
    """Linux's, which goes on in a suspend (clock_gettime(2)); None where it is not known or refused."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is not None:
        try:
            time.clock_gettime(clock)
        except OSError:  # an old kernel, or a sandbox
            return None
    return clock


_BOOT = _boot_clock()
