"""`RuntimeOptions`: how a `Runtime` uses its device, and what it goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from selector.adapt.battery_reader import read_battery
from selector.adapt.sensors import Sensors
from selector.choose.battery import Battery, BatteryPolicy
from selector.choose.budget import BudgetError
from selector.run.cache import ModelCache


@dataclass(frozen=True)
class RuntimeOptions:
    """Each may be given to `Runtime` by its name instead. Raises BudgetError naming the field and what is allowed."""

    device: str | Sequence[str] | None = None
    """The profile to go by; default: this machine's, or the only one. Several of one device, measured with different execution
    providers or numbers of threads, make one frontier."""
    threads: int | None = None  # of an inference; default: as the profile was measured
    provider: str | None = None  # an execution provider such as "cuda"; default: as the profile was measured
    spinning: bool = True  # idle threads wait actively: faster by some microseconds per operator, but cores are kept busy
    memory_mb: float | None = None  # that open sessions may take; a sub-model that alone takes more is never chosen
    load_ahead: bool = True
    """A run never waits for a session to be opened while one that is open fits the budget: it takes the best of those, the
    wanted one is opened in the background, and so are its neighbours on the frontier. Without, every run takes the best of
    all."""
    feedback: bool = True
    """Latencies are the profile's medians, with what is typical of the device above them (see `pooled`), corrected by what runs
    take (see `Controller`)."""
    cache: ModelCache | bool = True  # optimized copies of the graphs on this device; False: none
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
        if self.memory_reserve_mb is not None and not 0 <= self.memory_reserve_mb < inf:
            raise BudgetError(f"memory_reserve_mb = {self.memory_reserve_mb}: allowed are finite values from 0")
