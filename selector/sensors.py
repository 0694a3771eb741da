"""`Sensors`: what the device says of itself, read on a thread of its own, so that no run waits for a driver.

Each sensor is optional: one that fails, lies (a value outside of what is possible) or is absent reads None, and is asked
less often. Together they use at most a given share of one core: a sensor that turns out to be slow is asked less often too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import psutil

PRESSURE = Path("/proc/pressure/cpu")
CPUS = Path("/sys/devices/system/cpu")
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class Sensor:
    """Something that can be read. `least` and `most` bound what is possible."""

    name: str
    read: Callable[[], float | None]
    unit: str = ""
    every_seconds: float = 1.0
    least: float = -float("inf")
    most: float = float("inf")


@dataclass(frozen=True)
class Reading:
    """A value, or None where there is none to be had, and when it was read (monotonic seconds)."""

    value: float | None
    at: float


def default_sensors(*, pressure: Path = PRESSURE, cpus: Path = CPUS) -> list[Sensor]:
    """What psutil, /proc and /sys tell; of a system that has less, the others read None."""
    return [
        Sensor("cpu_load", lambda: psutil.cpu_percent() / 100, "share", 1.0, 0.0, 1.0),
        Sensor("cpu_pressure", lambda: _pressure(pressure), "share", 1.0, 0.0, 1.0),
        Sensor("cpu_frequency", lambda: _frequency(cpus), "share of the highest", 1.0, 0.0, 1.5),
        Sensor("throttled", lambda: _throttled(cpus), "events", 2.0, 0.0),
        Sensor("temperature", _temperature, "degrees Celsius", 2.0, -60.0, 150.0),
        Sensor("memory_available", lambda: psutil.virtual_memory().available / 2**20, "MB", 1.0, 0.0),
        Sensor("battery", _battery, "percent", 10.0, 0.0, 100.0),
    ]


class Sensors:
    """The latest reading of each, at most `share` of one core spent on all of them.

    Raises ValueError when two have the same name or the share is no share.
    """

    def __init__(self, sensors: Iterable[Sensor] | None = None, *, share: float = 0.005) -> None:
        given = default_sensors() if sensors is None else list(sensors)
        self.sensors = {sensor.name: sensor for sensor in given}
        if len(self.sensors) != len(given):
            raise ValueError("sensors: two have the same name")
        if not 0 < share <= 1:
            raise ValueError(f"share = {share}: allowed are values above 0, up to 1")
        self.share = share
        self.cpu_seconds = 0.0  # spent on reading, by all
        self._readings: dict[str, Reading] = {}
        self._intervals = {name: sensor.every_seconds for name, sensor in self.sensors.items()}
        self._due = dict.fromkeys(self.sensors, 0.0)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to read; nothing where it has begun."""
        if self._thread is None and self.sensors:
            self._thread = threading.Thread(target=self._run, name="sortednet-sensors", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def value(self, name: str, now: float | None = None) -> float | None:
        """The latest value; None where there is none, or it is older than three of its intervals."""
        reading = self._readings.get(name)
        moment = time.monotonic() if now is None else now
        if reading is None or moment - reading.at > 3 * self._intervals[name] + 1:
            return None
        return reading.value

    def values(self) -> dict[str, float | None]:
        """Of all, by name."""
        now = time.monotonic()
        return {name: self.value(name, now) for name in self.sensors}

    def read_due(self, now: float) -> float:
        """Reads what is due and says when to come back (seconds). What the thread does; tests call it themselves."""
        for name, due in self._due.items():
            if due <= now:
                self._read(self.sensors[name], now)
        return max(0.01, min(self._due.values()) - now)

    def _run(self) -> None:
        wait = 0.0
        while not self._stopped.wait(wait):
            wait = self.read_due(time.monotonic())

    def _read(self, sensor: Sensor, now: float) -> None:
        begun = time.thread_time()
        value: float | None
        try:
            value = sensor.read()
        except Exception:  # drivers fail in their own ways, and a missing reading must not stop anything
            value = None
        if value is not None and not (isfinite(value) and sensor.least <= value <= sensor.most):
            value = None
        cost = time.thread_time() - begun
        self.cpu_seconds += cost
        slowest = cost * len(self.sensors) / self.share
        interval = max(sensor.every_seconds, slowest)
        if value is None:
            interval = max(interval, min(2 * self._intervals[sensor.name], _LONGEST_SECONDS))
        self._intervals[sensor.name] = interval
        self._due[sensor.name] = now + interval
        self._readings[sensor.name] = Reading(value, now)


def _pressure(path: Path) -> float | None:
    """Share of the last ten seconds in which some task waited for a processor (pressure stall information)."""
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("some"):
            fields = dict(field.split("=") for field in line.split()[1:])
            return float(fields["avg10"]) / 100
    return None


def _frequency(cpus: Path) -> float | None:
    """Mean of the cores' present frequency over their highest."""
    shares = []
    for core in cpus.glob("cpu[0-9]*/cpufreq"):
        highest = float((core / "cpuinfo_max_freq").read_text())
        if highest > 0:
            shares.append(float((core / "scaling_cur_freq").read_text()) / highest)
    return sum(shares) / len(shares) if shares else None


def _throttled(cpus: Path) -> float | None:
    """How often the processor has slowed itself down because of heat since it was started (x86)."""
    counts = [int(path.read_text()) for path in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    return float(sum(counts)) if counts else None


def _temperature() -> float | None:
    """The hottest of what psutil finds."""
    read = getattr(psutil, "sensors_temperatures", None)
    found = [entry.current for entries in (read() if read else {}).values() for entry in entries if entry.current]
    return max(found, default=None)


def _battery() -> float | None:
    state = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if state is None else float(state.percent)
