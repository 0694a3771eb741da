"""Reads this device's battery, without ever waiting for a driver that hangs."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

import psutil

from device_profiles.batteries import POWER_SUPPLY, charge, peripherals_alone, system_batteries
from selector.choose.battery import Battery
from selector.choose.clock import seconds

log = logging.getLogger("sortednet.battery")

BATTERY_SECONDS = 10.0
"""So old a reading may be before the battery is read again."""
WAIT_SECONDS = 0.5


def read_battery() -> Battery | None:
    """This device's battery, or all that it runs on; None when it has none or says nothing that makes sense. Never raises."""
    try:
        if system_batteries(POWER_SUPPLY) or peripherals_alone(POWER_SUPPLY):
            held = charge(POWER_SUPPLY)
            return None if held is None else Battery(percent=held.percent, discharging=held.discharging)
        state = psutil.sensors_battery()
        percent = math.nan if state is None else float(state.percent)
    except Exception:  # drivers fail in their own ways, and a missing reading must not stop an inference
        return None
    if not math.isfinite(percent) or percent < 0:
        return None
    return Battery(percent=min(percent, 100.0), discharging=state.power_plugged is False)


class BatteryReader:
    """The state of charge by a call that may take long, hang, fail or give something else: it is made on a thread of its own.

    A run waits for it only where nothing is known that is younger than three BATTERY_SECONDS, and at most WAIT_SECONDS; while
    a call hangs no run waits, and the battery is as good as gone. What it fails with or gives instead is logged once.
    """

    def __init__(self, read: Callable[[], Battery | None]) -> None:
        self._read = read
        self._state: tuple[Battery | None, float] = (None, -math.inf)  # and when it was read
        self._thread: threading.Thread | None = None
        self._begun_at = -math.inf
        self._starting = threading.Lock()
        self._told = False

    def latest(self) -> Battery | None:
        """At most three BATTERY_SECONDS old; where it is older than one, it is read again. Never raises."""
        state, read_at = self._state
        age = seconds() - read_at
        if age < BATTERY_SECONDS:
            return state
        old = age >= 3 * BATTERY_SECONDS
        self._begin(wait=old)
        if old:
            state, read_at = self._state
            return state if seconds() - read_at < 3 * BATTERY_SECONDS else None
        return state

    def _begin(self, wait: bool) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._reading, name="sortednet-battery", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system lets this process have no more: not asked again for a while
                    self._state = (None, seconds())
                    return
                self._thread, self._begun_at = thread, seconds()
            thread, left = self._thread, self._begun_at + WAIT_SECONDS - seconds()
        if wait and left > 0:
            thread.join(left)

    def _reading(self) -> None:
        state = None
        try:
            state = self._read()
            if not isinstance(state, Battery | None):
                self._tell(f"gave {state!r:.200}")
        except Exception as error:  # a user's own reader may fail in its own ways
            self._tell(f"failed: {error!r:.200}")
        self._state = (state if isinstance(state, Battery) else None, seconds())

    def _tell(self, what: str) -> None:
        if not self._told:
            log.warning(
                "battery: the reader %s; allowed are a Battery(percent=…, discharging=…) and None, for which it counts", what
            )
        self._told = True
