"""`RuntimeOptions`: how a `Runtime` uses its device, and what it goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from selector.adapt.battery_reader import read_battery
from selector.adapt.sensors import Sensors
from selector.choose.battery import Battery, BatteryPolicy
from selector.choose.budget import BudgetError
from selector.run.cache import ModelCache
from selector.run.decode.options import MODES, Mode


@dataclass(frozen=True)
class RuntimeOptions:
    """Each may be given to `Runtime` by its name instead. Raises BudgetError naming the field and what is allowed."""

    device: str | Path | Sequence[str | Path] | None = None
    """The profile to go by; default: this machine's, or the only one. Several of one device, measured with different execution
    providers or numbers of threads, make one frontier."""
    threads: int | None = None  # of an inference; default: as the profile was measured
    provider: str | None = None  # an execution provider such as "cuda"; default: as the profile was measured
    spinning: bool | None = None  # idle threads wait actively for half a millisecond; default: as the profile was measured
    memory_mb: float | None = None  # that open sessions may take; a sub-model that alone takes more is never chosen
    load_ahead: bool = True
    """A run never waits for a session to be opened while one that is open fits the budget: it takes the best of those, the
    wanted one is opened in the background, and so are its neighbours on the frontier. Without, every run takes the best of
    all."""
    feedback: bool = True
    """Latencies are the profile's medians, with what is typical of the device above them (see `pooled`), corrected by what runs
    take (see `Controller`)."""
    cache: ModelCache | bool = True  # optimized copies of the graphs on this device; False: none
    speculative: Mode = "off"
    """Of a language model: which graphs are opened. Other than off: those that verify guessed tokens, where there are some and
    this device computes them exactly; ngram: in one part, without exits."""
    cascades: bool = True  # the bundle's are candidates like any sub-model; False: a run is always of a single one
    policy: BatteryPolicy | None = None  # what a low battery changes
    battery: Callable[[], Battery | None] = read_battery  # reads the state of charge, on a thread of its own
    sensors: Sensors | bool = True
    """The device's readings: an instance of `Sensors`, which is started, False for none, or True for the default ones, which
    one thread reads for all runtimes of the process at no more than half a per cent of a core; they are on because a device
    that runs out of memory ends the process."""
    memory_reserve_mb: float | None = None
    """With less than this available (default: a twentieth of the memory, at most 512 MB) sessions are closed, and sub-models
    that no longer fit are not chosen until it is back; the one that takes least always may be."""

    def __post_init__(self) -> None:
        for name, (fits, allowed) in _ALLOWED.items():
            value = getattr(self, name)
            if not fits(value):
                raise BudgetError(f"{name} = {value!r}: allowed {allowed}")


def _is_device(value: object) -> bool:
    if isinstance(value, str | Path | None):
        return True
    return isinstance(value, Sequence) and all(isinstance(one, str | Path) for one in value)


def _is_number(value: object, least: float = 0.0) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and least <= value < inf)


_Check = tuple[Callable[[Any], bool], str]
_YES_OR_NO: _Check = (lambda value: isinstance(value, bool), "are True and False")
_ALLOWED: dict[str, _Check] = {
    "device": (_is_device, "are a profile's name or file, and several of them"),
    "threads": (lambda value: value is None or type(value) is int, "are whole numbers from 0, and None"),
    "provider": (lambda value: isinstance(value, str | None), "are the name of an execution provider, and None"),
    "spinning": (lambda value: isinstance(value, bool | None), "are True, False and None"),
    "memory_mb": (lambda value: _is_number(value, -inf), "are finite values above 0, and None"),
    "load_ahead": _YES_OR_NO,
    "feedback": _YES_OR_NO,
    "cache": (lambda value: isinstance(value, bool | ModelCache), "are a ModelCache, True and False"),
    "cascades": _YES_OR_NO,
    "speculative": (lambda value: value in MODES, f"are {', '.join(MODES)}"),
    "policy": (lambda value: isinstance(value, BatteryPolicy | None), "are a BatteryPolicy and None"),
    "battery": (callable, "is a call without arguments that returns a Battery or None"),
    "sensors": (lambda value: isinstance(value, bool | Sensors), "are a Sensors, True and False"),
    "memory_reserve_mb": (_is_number, "are finite values from 0, and None"),
}
"""By option: what it may be. Here, so that a wrong one is told by its name and not by what first fails on it."""
