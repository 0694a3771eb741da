"""The clocks that decisions go by.

`seconds` never jumps, and it counts the time in which the device is suspended, where the system has such a clock. A battery
drains then too, and a plan's end comes nearer; `time.monotonic` stands still.

`wall_clock` is what people go by: it is set, its time zone moves, and summer time begins and ends.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, tzinfo


def seconds() -> float:
    """Since some moment; only differences mean something."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


def wall_clock() -> datetime:
    """Now, in the device's time zone as it is now."""
    if hasattr(time, "tzset"):  # a process is not told of it otherwise
        time.tzset()
    return datetime.now(UTC).astimezone(LOCAL)


class _Local(tzinfo):
    """The device's time zone: unlike that of `datetime.astimezone` it knows that the offset is another one on other days."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, moment: datetime) -> datetime:
        return moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=self)


LOCAL = _Local()


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
