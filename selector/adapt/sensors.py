"""`Sensors`: what the device says of itself, read on a thread of its own, so that no run waits for a driver.

Each sensor is optional: one that fails, lies (a value outside of what is possible) or is absent reads None, and is asked
less often. Together they use at most a given share of one core: a sensor that turns out to be slow is asked less often too.

A sensor of one's own is a name and a call without arguments that returns a number or None, here a fan's speed, next to the
default ones:

    fan = Sensor("fan", lambda: float(Path("/sys/class/hwmon/hwmon0/fan1_input").read_text()), "rpm", every_seconds=5, least=0)
    runtime = Runtime("bundle", sensors=Sensors([*default_sensors(), fan]))
    runtime.sensors.value("fan")
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

import psutil

from device_profiles.batteries import POWER_SUPPLY
from device_profiles.cgroups import memory_limits
from device_profiles.energy import DischargingBattery
from selector.adapt.battery_reader import read_battery
from selector.choose.clock import seconds

log = logging.getLogger("sortednet.sensors")

PRESSURE = Path("/proc/pressure/cpu")
MEMORY_PRESSURE = Path("/proc/pressure/memory")
CPUS = Path("/sys/devices/system/cpu")
_LONGEST_SECONDS = 60.0
_WAITING = 0.1  # of the thread's time, at most so much is spent in one sensor, waiting for its driver


@dataclass(frozen=True)
class Sensor:
    """Something that can be read. `least` and `most` bound what is possible."""

    name: str
    read: Callable[[], float | None]
    unit: str = ""
    every_seconds: float = 1.0
    least: float = -float("inf")
    most: float = float("inf")


_SIGNS = {"percent": "%", "degrees Celsius": "°C"}


def in_words(value: float, unit: str) -> str:
    """A reading with its unit as people read it; of shares per cent, of what is 1 or 0 yes or no."""
    if unit.startswith("share"):
        _, _, of = unit.partition("share ")
        return f"{100 * value:.3g} % {of}".rstrip()
    if unit.startswith("1 "):
        return "yes" if value else "no"
    number = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {_SIGNS.get(unit, unit)}".rstrip()


@dataclass(frozen=True)
class Reading:
    """A value, or None where there is none to be had, and when it was read (seconds of `selector.choose.clock`)."""

    value: float | None
    at: float


def default_sensors(
    *,
    pressure: Path = PRESSURE,
    memory_pressure: Path = MEMORY_PRESSURE,
    cpus: Path = CPUS,
    power_supply: Path = POWER_SUPPLY,
) -> list[Sensor]:
    """What psutil, /proc and /sys tell; of a system that has less, the others read None."""
    return [
        Sensor("cpu_load", _cpu_load(), "share", 1.0, 0.0, 1.0),
        Sensor("cpu_pressure", lambda: _pressure(pressure), "share", 1.0, 0.0, 1.0),
        Sensor("cpu_frequency", lambda: _frequency(cpus), "share of the highest", 1.0, 0.0, 1.5),
        Sensor("throttled", lambda: _throttled(cpus), "events", 2.0, 0.0),
        Sensor("temperature", _temperature, "degrees Celsius", 2.0, -60.0, 150.0),
        Sensor("memory_available", _memory_available, "MB", 1.0, 0.0),
        Sensor("memory_pressure", lambda: _pressure(memory_pressure), "share", 1.0, 0.0, 1.0),
        Sensor("battery", _battery, "percent", 10.0, 0.0, 100.0),
        Sensor("plugged", _plugged, "1 on the mains, else 0", 10.0, 0.0, 1.0),
        Sensor("discharge", lambda: _discharge(power_supply), "W", 10.0, 0.0, 1000.0),
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
        self.after: list[Callable[[float], None]] = []
        """Called each time that something was read, on the sensors' thread, with the moment by `selector.choose.clock`."""
        self._readings: dict[str, Reading] = {}
        self._intervals = {name: sensor.every_seconds for name, sensor in self.sensors.items()}
        self._due = dict.fromkeys(self.sensors, 0.0)
        self._stopped = threading.Event()  # of the latest thread
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begins to read; nothing where it has begun. In a forked process it begins anew: threads stay behind. Where no thread
        can be started nothing is read."""
        with self._starting:
            reads = self._thread is not None and self._thread.is_alive() and not self._stopped.is_set()
            if reads or not self.sensors:
                return
            self._stopped = threading.Event()
            thread = threading.Thread(target=self._run, args=(self._stopped,), name="sortednet-sensors", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system lets this process have no more
                log.warning("sensors: read nothing: %s", error)
                return
            self._thread = thread

    def stop(self) -> None:
        """Reads no more, once what is just being read is done; the latest values grow old."""
        self._stopped.set()

    def value(self, name: str, now: float | None = None) -> float | None:
        """The latest value; None where there is none, or it is older than three of its intervals."""
        reading = self._readings.get(name)
        moment = seconds() if now is None else now
        if reading is None or moment - reading.at > 3 * self._intervals[name] + 1:
            return None
        return reading.value

    def values(self) -> dict[str, float | None]:
        """Of all, by name."""
        now = seconds()
        return {name: self.value(name, now) for name in self.sensors}

    def shown(self) -> dict[str, str]:
        """What is known now, by name, as people read it: "61 °C", "12 %"."""
        return {name: in_words(value, self.sensors[name].unit) for name, value in self.values().items() if value is not None}

    def read_due(self, now: float) -> float:
        """Reads what is due and says when to come back (seconds). What the thread does; tests call it themselves."""
        for name, due in self._due.items():
            if due <= now:
                self._read(self.sensors[name], now)
        for told in tuple(self.after):
            try:
                told(now)
            except Exception:  # the readings go on, whatever is made of them
                log.exception("what follows from the sensors' readings failed")
        return max(0.01, min(self._due.values(), default=now + _LONGEST_SECONDS) - now)

    def _run(self, stopped: threading.Event) -> None:
        wait = 0.0
        while not stopped.wait(wait):
            wait = self.read_due(seconds())

    def _read(self, sensor: Sensor, now: float) -> None:
        begun, begun_at = time.thread_time(), time.monotonic()  # a suspend in the middle is not the driver's
        value: float | None
        try:
            value = sensor.read()
            if value is not None and not (isfinite(value) and sensor.least <= value <= sensor.most):
                value = None
        except Exception:  # drivers fail in their own ways, and a missing reading must not stop anything
            value = None
        cost = time.thread_time() - begun
        self.cpu_seconds += cost
        slowest = cost * len(self.sensors) / self.share
        waited = time.monotonic() - begun_at
        interval = max(sensor.every_seconds, slowest, waited / _WAITING if waited > 0.1 else 0.0)
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


def _cpu_load() -> Callable[[], float | None]:
    """Of the time since the call before. psutil remembers that for each thread, and says 0 where there was none."""
    asked: set[int] = set()

    def read() -> float | None:
        load, known = psutil.cpu_percent() / 100, threading.get_ident() in asked
        asked.add(threading.get_ident())
        return load if known else None

    return read


def _battery() -> float | None:
    battery = read_battery()
    return None if battery is None else battery.percent


def _plugged() -> float | None:
    state = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if state is None or state.power_plugged is None else float(state.power_plugged)


def _discharge(power_supply: Path) -> float | None:
    """What the battery gives (W), 0 on the mains; None where there is none or its driver does not tell (Linux alone does)."""
    battery = DischargingBattery.find(power_supply)
    if battery is not None:
        return battery.watts()
    return 0.0 if _plugged() == 1.0 else None


def _memory_available() -> float:
    """MB that this process can still have: of the machine's, or of one of its control groups' where that has less left."""
    left = [max(0.0, group.limit - group.used) for group in memory_limits()]
    return min(float(psutil.virtual_memory().available) / 2**20, *left, inf)


@functools.cache
def shared_sensors() -> Sensors:
    """The default sensors, read by one thread for the whole process."""
    return Sensors()
