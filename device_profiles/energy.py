"""Energy meters: how many joules have been used so far, by the processor's counters, the battery, or a declared wattage.

What a meter reads is the whole package or the whole device, idle power and other programs included, which is what drains a
battery. A declared wattage counts the processor time of this process alone.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from device_profiles.batteries import POWER_SUPPLY, system_batteries
from device_profiles.schema import ProfileError, Source

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter(Protocol):
    """Joules since some moment; only differences mean something."""

    @property
    def name(self) -> str:
        """What is read, in words."""

    @property
    def source(self) -> Source: ...

    @property
    def window_s(self) -> float:
        """Between two readings must lie at least so much that their difference means something."""

    def joules(self) -> float:
        """Raises OSError when it cannot be read any more."""


def find_meter(
    watts: float | None = None, *, powercap: Path = POWERCAP, power_supply: Path = POWER_SUPPLY
) -> EnergyMeter | None:
    """The processor's counters where they are and may be read, else a battery that is discharging, else `watts`, else none.

    Raises ProfileError for a wattage that is not positive.
    """
    declared = DeclaredPower(watts) if watts is not None else None
    return RaplCounters.find(powercap) or DischargingBattery.find(power_supply) or declared


@dataclass
class RaplCounters:
    """The running-average-power-limit counters of the processor packages, as Linux's powercap shows them.

    Zones are `intel-rapl:N` (AMD's too) with `name`, `energy_uj` and `max_energy_range_uj`, after which the counter begins
    at 0 again. `psys`, the whole platform, contains the packages and is left out beside them.
    """

    zones: dict[Path, int]  # and where the counter wraps, in microjoules
    names: list[str]
    source: Source = "measured"
    window_s: float = 0.05  # the counters move every millisecond
    _last: dict[Path, int] = field(default_factory=dict)
    _total_uj: int = 0

    @classmethod
    def find(cls, root: Path = POWERCAP) -> RaplCounters | None:
        """None where there are none, or none that this user may read (since 2020 kernels ask for root)."""
        found: dict[str, tuple[Path, int]] = {}
        for zone in sorted(root.glob("*-rapl:*")):
            if zone.name.count(":") != 1:  # part of another zone
                continue
            try:
                name = (zone / "name").read_text().strip()
                _read_int(zone / "energy_uj")
                wraps_at = _read_int(zone / "max_energy_range_uj")
            except (OSError, ValueError):
                continue
            found[f"{zone.name} {name}"] = zone, wraps_at
        packages = {name: zone for name, zone in found.items() if not name.endswith("psys")} or found
        return cls(dict(packages.values()), list(packages)) if packages else None

    @property
    def name(self) -> str:
        return f"RAPL counters of {', '.join(self.names)}"

    def joules(self) -> float:
        for zone, wraps_at in self.zones.items():
            now = _read_int(zone / "energy_uj")
            before = self._last.get(zone, now)
            self._total_uj += now - before if now >= before else wraps_at - before + now
            self._last[zone] = now
        return self._total_uj / 1e6


@dataclass
class DischargingBattery:
    """The power that the device's batteries give, summed up from one reading to the next; two may give in turn.

    `power_now` in microwatts, or `voltage_now` (microvolts) times `current_now` (microamperes, negative on some machines).
    Drivers renew these about once a second.
    """

    root: Path
    batteries: list[Path]  # that gave at first
    source: Source = "measured"
    window_s: float = 2.0
    _total: float = 0.0
    _before: tuple[float, float] | None = None  # seconds, watts

    @classmethod
    def find(cls, root: Path = POWER_SUPPLY) -> DischargingBattery | None:
        giving = _giving(root)
        return cls(root, list(giving)) if giving else None

    @property
    def name(self) -> str:
        return f"discharge of {', '.join(battery.name for battery in self.batteries)}"

    def watts(self) -> float:
        """Raises OSError when none is discharging any more, or one is being charged."""
        giving = _giving(self.root)
        if not giving:
            raise OSError(errno.ENODATA, "the device does not run on its battery any more", str(self.root))
        return sum(giving.values())

    def joules(self) -> float:
        now, watts = time.monotonic(), self.watts()
        if self._before is not None:
            then, before = self._before
            self._total += (now - then) * (before + watts) / 2
        self._before = now, watts
        return self._total


@dataclass(frozen=True)
class DeclaredPower:
    """A wattage per busy core, from a data sheet or a wall meter, times this process' processor time."""

    watts: float
    source: Source = "declared"
    window_s: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.watts, int | float) or not 0 < self.watts < float("inf"):
            raise ProfileError(f"watts = {self.watts!r}: allowed are positive numbers")

    @property
    def name(self) -> str:
        return f"declared: {self.watts:g} W per busy core"

    def joules(self) -> float:
        return self.watts * time.process_time()


def _giving(root: Path) -> dict[Path, float]:
    """The batteries that are discharging, and their watts; none while one is being charged: the device is plugged in."""
    found = {}
    for battery in system_batteries(root):
        try:
            status = (battery / "status").read_text().strip()
            if status == "Charging":
                return {}
            if status == "Discharging" and (watts := _watts(battery)) > 0:
                found[battery] = watts
        except (OSError, ValueError):
            continue
    return found


def _watts(battery: Path) -> float:
    power = battery / "power_now"
    if power.exists():
        return abs(_read_int(power)) / 1e6
    return _read_int(battery / "voltage_now") * abs(_read_int(battery / "current_now")) / 1e12


def _read_int(path: Path) -> int:
    return int(path.read_text())
