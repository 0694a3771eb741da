"""`Runtime`: keeps the sessions of a bundle, runs the sub-model that fits each call, and says which it was."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from device_profiles import Profile
from exporter.bundle import Bundle, BundleError
from exporter.bundle.manifest import TaskEntry, TensorSpec
from exporter.bundle.session import CPU, SessionOptions
from selector.adapt.battery_reader import BatteryReader, read_battery
from selector.adapt.controller import Controller, pooled
from selector.adapt.memory import MemoryGuard, default_reserve_mb
from selector.adapt.sensors import Sensors, shared_sensors
from selector.choose.battery import Battery, BatteryPolicy
from selector.choose.budget import Budget, BudgetError, Selection
from selector.choose.cascades import Cascade, read_cascades, with_cascades
from selector.choose.clock import seconds
from selector.choose.profiles import find_profiles
from selector.choose.selector import Key, Selector
from selector.run.answers import Answer, answers
from selector.run.cache import ModelCache, session_opener
from selector.run.cascade import CascadeSession
from selector.run.pool import SessionPool

log = logging.getLogger("sortednet.runtime")

Array = NDArray[Any]
Session: TypeAlias = "ort.InferenceSession | CascadeSession"
HISTORY = 1000
_NO_LIMITS = Budget()
_NOT_MEASURED = ""  # in place of a profile's name


class InputError(ValueError):
    """An input of the wrong name, shape or type, or with values that are no numbers."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave, what was chosen for it and why, and how long it took (without the choice)."""

    outputs: dict[str, Array]
    selection: Selection
    latency_ms: float
    task: TaskEntry | None = None

    @property
    def labels(self) -> list[str]:
        """Of each example the name of the class that it most probably is; empty for another task than classification."""
        return [best[0].label for best in self.answers(1)]

    def answers(self, count: int = 3) -> list[list[Answer]]:
        """Of each example so many most probable classes with their probabilities; empty for another task."""
        return [] if self.task is None else answers(self.task, self.outputs, count)


class RunRecord(NamedTuple):
    """One run in a runtime's history."""

    at: float  # seconds since 1970
    submodel: str
    device: str  # the profile
    latency_ms: float  # per example of its batch
    limit_ms: float | None
    slow_down: float  # of the device, relative to its profile, after this run
    battery_percent: float | None
    reason: str  # of the choice; where there is a battery plan it says how that stands

    @property
    def met(self) -> bool:
        return self.limit_ms is None or self.latency_ms <= self.limit_ms


class Runtime:
    """A bundle on this device.

    `device` names the profile to go by (default: this machine's, or the only one); several profiles of one device, measured
    with different execution providers or numbers of threads, make one frontier. `threads`, `provider` (an execution
    provider such as "cuda") and `spinning` say how the sessions use the device; the first two default to what the profile
    was measured with. Sessions stay open within `memory_mb`; a sub-model that alone takes more is never chosen.

    With `load_ahead` a run never waits for a session to be opened while one that is open fits the budget: it takes the best
    of those, the wanted one is opened in the background, and so are its neighbours on the frontier. Without, every run
    takes the best of all. `cache` keeps optimized copies of the graphs on this device; False switches it off. The bundle's
    `cascades` (see `sortednet cascade`) are candidates like any sub-model; without them a run is always of a single one.
    `battery` reads the state of charge, on a thread of its own, and may return None. With `feedback` latencies are the
    profile's medians, with what is typical of the device above them (see `pooled`), corrected by what runs take (see
    `Controller`). `history` holds the latest HISTORY runs. A runtime may be used
    from several threads at once.

    `sensors` are the device's readings (`runtime.sensors.values()`): an instance of `Sensors`, which is started, False for
    none, or True for the default ones, which one thread reads for all runtimes of the process at no more than half a per
    cent of a core; they are on because a device that runs out of memory ends the process. When less than
    `memory_reserve_mb` (default: a twentieth of the memory, at most 512 MB) is available, sessions are closed, and
    sub-models that no longer fit are not chosen until it is back; the one that takes least always may be.

    Raises BundleError when the bundle is damaged or has no such profile, BudgetError when it is not clear which of
    several profiles is meant, nothing fits `memory_mb` or `cascades.json` is damaged, SessionError for an execution provider
    that is not here.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        device: str | Sequence[str] | None = None,
        threads: int | None = None,
        provider: str | None = None,
        spinning: bool = True,
        memory_mb: float | None = None,
        load_ahead: bool = True,
        feedback: bool = True,
        cache: ModelCache | bool = True,
        cascades: bool = True,
        policy: BatteryPolicy | None = None,
        battery: Callable[[], Battery | None] = read_battery,
        sensors: Sensors | bool = True,
        memory_reserve_mb: float | None = None,
    ) -> None:
        if memory_reserve_mb is not None and not 0 <= memory_reserve_mb < inf:
            raise BudgetError(f"memory_reserve_mb = {memory_reserve_mb}: allowed are finite values from 0")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        found = read_cascades(self.bundle) if cascades else []
        self.cascades = {cascade.id: cascade for cascade in found}
        profiles = self._profiles(device)
        if feedback:
            profiles = [pooled(profile) for profile in profiles]
        profiles = [with_cascades(profile, found) for profile in profiles]
        self._first_device = profiles[0].device.name if profiles else _NOT_MEASURED
        self._memory = _memory_of(self.bundle, profiles or [None], found)
        measured = {(name, profile.device.name) for profile in profiles for name in profile.submodels}
        self._fitting = self._within(memory_mb, measured or self._memory)
        self._make_selector = partial(self._selector, profiles, found, policy)
        self.selector = self._make_selector()
        self.controller = Controller(self.selector, profiles, feedback=feedback) if self.selector else None
        self.history: deque[RunRecord] = deque(maxlen=HISTORY)
        self._learning = threading.Lock()
        self._ran: weakref.WeakSet[Session] = weakref.WeakSet()
        self.pool = SessionPool(
            self._opener(profiles or [None], threads, provider, spinning, cache), self._memory.__getitem__, memory_mb
        )
        self.load_ahead, self.feedback = load_ahead, feedback
        self._latest: Key | None = None
        self._accepted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []  # as the inputs of the latest run were
        self._output_names = [output.name for output in self.bundle.manifest.outputs]
        self._battery_reader = BatteryReader(battery)
        self._battery: Battery | None = None  # as the latest choice went by it
        self._memory_mb, self._allowed = memory_mb, self._fitting
        self._least_mb = min(self._memory[key] for key in self._fitting)
        self.sensors = sensors if isinstance(sensors, Sensors) else shared_sensors() if sensors else Sensors([])
        reserve = default_reserve_mb() if memory_reserve_mb is None else memory_reserve_mb
        self._guard = MemoryGuard(min(memory_mb or inf, sum(self._memory.values())), reserve)
        self._unwatch = _after_readings(self.sensors, self)
        self.sensors.start()

    def run(self, inputs: Mapping[str, Array] | Array, budget: Budget | None = None) -> RunResult:
        """Chooses a sub-model for the budget and runs it; when nothing fits, the nearest one runs. Of a batch the budget is
        each example's: a profile is of single ones.

        Raises InputError naming the input when it does not fit the graph, BudgetError when a limit is given and this
        device has not been measured, BundleError when the graph cannot be opened.
        """
        feed = self.check_inputs(inputs)
        selection, session = self._choose(budget or _NO_LIMITS)
        first_ms: float | None = None
        begun = time.perf_counter()
        try:
            if isinstance(session, CascadeSession):
                values, first_ms = session.timed(self._output_names, feed)
            else:
                values = session.run(self._output_names, feed)
        except Exception as error:  # ONNX Runtime has one exception type per status code
            raise InputError(f"input: {selection.submodel} cannot compute it: {error}") from error
        elapsed = (time.perf_counter() - begun) * 1e3
        self._note(selection, session, elapsed, first_ms, budget or _NO_LIMITS, examples_in(self.bundle, feed))
        return RunResult(dict(zip(self._output_names, values, strict=True)), selection, elapsed, self.bundle.manifest.task)

    def select(self, budget: Budget) -> Selection:
        """The best for the budget now, whether it is open or not. Raises BudgetError where there is no profile, or no accuracy
        is known, and the budget has limits."""
        if self.controller is not None:
            battery = self.battery()
            with self._learning:
                chosen = self.controller.choose(budget, seconds(), battery)
            if self._fitting is self._allowed:
                return chosen
            reason = f"{chosen.reason}; the device is short of memory: at most {self.pool.memory_mb:.3g} MB"
            return chosen._replace(reason=reason)
        if budget == _NO_LIMITS:
            return self._most_accurate()
        if all(accuracy is None for accuracy in self.bundle.accuracies.values()):
            raise BudgetError("no accuracy is known for any sub-model: export with test data")
        raise BudgetError(f"this device has not been measured: run `sortednet profile {self.bundle.path}` first")

    def battery(self) -> Battery | None:
        """The battery's state, at most half a minute old; None also where reading it fails."""
        self._battery = self._battery_reader.latest()
        return self._battery

    def session(self, submodel: str, device: str | None = None) -> Session:
        """The sub-model's session, used as for that profile (default: the first), opened now if it is not open.

        Raises BundleError for a sub-model that is not in the bundle or cannot be opened, BudgetError for a profile that this
        runtime does not go by.
        """
        name = submodel if submodel in self.cascades else self.bundle.submodel(submodel).id
        key = (name, self._first_device if device is None else device)
        if key not in self._memory:
            known = ", ".join(dict.fromkeys(other for _, other in self._memory if other))
            raise BudgetError(f"device = {device!r}: allowed is {known or 'none, because nothing was measured'}")
        return self.pool.load(key)

    def check_inputs(self, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
        """The feed for a session. Raises InputError naming the input, what it is and what it must be."""
        if self._accepted and type(inputs) is dict and len(inputs) == len(self._accepted):
            for name, dtype, shape in self._accepted:
                value = inputs.get(name)
                if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
                    break
                if dtype.kind == "f" and not _has_finite_sum(value):  # or the sum is too large: looked at below
                    break
            else:
                return inputs
        feed = check_inputs(self.bundle, inputs)
        self._accepted = [(name, value.dtype, value.shape) for name, value in feed.items()]
        return feed

    def close(self) -> None:
        """Closes every session. The sensors go on: others may read them too."""
        self._unwatch()
        self.pool.close()

    def _choose(self, budget: Budget) -> tuple[Selection, Session]:
        wanted = self.select(budget)
        key = (wanted.submodel, wanted.device)
        session = self.pool.get(key)
        if session is not None:
            if key != self._latest:
                self._latest = key
                self._open_neighbours(key)
            return wanted, session
        loaded = self.pool.loaded  # once: the sensors' thread may close sessions at any time
        if self.load_ahead and self.controller is not None and loaded:
            with self._learning:
                instead = self.controller.choose(budget, seconds(), self._battery, among=loaded)
            open_key = (instead.submodel, instead.device)
            session = self.pool.get(open_key) if instead.feasible else None
            if session is not None and self.pool.fit_together(key, open_key):
                self.pool.load_ahead([key], keep=(open_key,))
                return instead._replace(reason=f"{instead.reason} that is open; {wanted.submodel} is being opened"), session
        self._latest = key
        session = self.pool.load(key)
        self._open_neighbours(key)
        return wanted, session

    def _note(
        self, selection: Selection, session: Session, elapsed: float, first_ms: float | None, budget: Budget, examples: int
    ) -> None:
        """Keeps the run in the history and learns from it. `first_ms`: of a cascade's first sub-model; how long both take
        depends on the examples."""
        controller, latency_ms, slow_down = self.controller, elapsed / examples, 1.0
        if controller is not None:
            with self._learning:  # runs may come from several threads
                controller.spent(selection, examples)
                if self.feedback:
                    if session not in self._ran:  # its first run also sets its memory up, which says nothing of the device
                        self._ran.add(session)
                    elif first_ms is not None:
                        controller.observe(selection, first_ms / examples, seconds(), ran=selection.stages[0])
                    else:
                        controller.observe(selection, latency_ms, seconds())
            slow_down = controller.slow_down(selection.device)
        battery, limit = self._battery, budget.latency_ms
        percent = None if battery is None else battery.percent
        submodel, device, reason = selection.submodel, selection.device, selection.reason
        self.history.append(RunRecord(time.time(), submodel, device, latency_ms, limit, slow_down, percent, reason))

    def bound_memory(self, now: float) -> None:
        """Holds the sessions to what the device's memory allows now; the sensors' thread calls it after its readings."""
        available, pressure = (self.sensors.value(name, now) for name in ("memory_available", "memory_pressure"))
        limit = self._guard.update(self.pool.memory_used_mb, available, pressure, now)
        if limit >= self._guard.most_mb:
            limit = self._memory_mb or inf
        limit = max(limit, self._least_mb)
        if limit == self.pool.memory_mb:
            return
        self.pool.limit(limit)
        fitting = {key for key in self._allowed if self._memory[key] <= limit}
        if fitting == self._fitting:
            return
        log.info("memory: %s MB available, sessions may take %.3g MB, %d sub-models fit", available, limit, len(fitting))
        self._fitting = self._allowed if fitting == self._allowed else fitting
        selector = self._make_selector() if self.controller is not None else None
        if selector is not None and self.controller is not None:  # None: of those that fit no accuracy is known
            self.selector = selector
            self.controller.use(selector)

    def _open_neighbours(self, key: Key) -> None:
        if self.load_ahead and self.selector is not None:
            self.pool.load_ahead(self.selector.neighbours(key), keep=(key,))

    def _profiles(self, device: str | Sequence[str] | None) -> list[Profile]:
        if not device and not self.bundle.devices():
            return []
        return find_profiles(self.bundle, device)

    def _within(self, memory_mb: float | None, candidates: Collection[Key]) -> Collection[Key]:
        """Those of the candidates that can be opened within the memory."""
        fitting = {key for key in candidates if memory_mb is None or self._memory[key] <= memory_mb}
        if not fitting:
            least = min(self._memory[key] for key in candidates)
            raise BudgetError(f"memory_mb = {memory_mb:g}: no sub-model fits; the smallest takes {least:.3g} MB")
        return fitting

    def _selector(
        self, profiles: Sequence[Profile], cascades: Sequence[Cascade], policy: BatteryPolicy | None
    ) -> Selector | None:
        """None where there is nothing to go by."""
        known = {name for name, accuracy in self.bundle.accuracies.items() if accuracy is not None} | self.cascades.keys()
        if not profiles or not any(submodel in known for submodel, _ in self._fitting):
            return None
        kept = []
        for profile in profiles:
            fitting = {name: m for name, m in profile.submodels.items() if (name, profile.device.name) in self._fitting}
            kept.append(profile.model_copy(update={"submodels": fitting}))
        return Selector(kept, self.bundle.accuracies, policy=policy, cascades=cascades)

    def _opener(
        self,
        profiles: Sequence[Profile | None],
        threads: int | None,
        provider: str | None,
        spinning: bool,
        cache: ModelCache | bool,
    ) -> Callable[[Key], Session]:
        """Opens a sub-model as it was measured for its profile, where nothing else was asked for."""
        openers = {}
        for profile in profiles:
            options = _session_options(profile, threads, provider, spinning)
            openers[profile.device.name if profile else _NOT_MEASURED] = session_opener(self.bundle, options, cache)

        def opened(key: Key) -> Session:
            name, device = key
            cascade = self.cascades.get(name)
            try:
                if cascade is None:
                    return openers[device](name)
                return CascadeSession(cascade, openers[device](cascade.first), openers[device](cascade.then))
            except Exception as error:  # ONNX Runtime has one exception type per status code
                raise BundleError(f"sub-model {name!r}: cannot be opened: {error}") from error

        return opened

    def _most_accurate(self) -> Selection:
        fitting = [entry for entry in self.bundle.manifest.submodels if (entry.id, self._first_device) in self._fitting]
        best = max(fitting, key=lambda entry: (entry.accuracy or 0.0, entry.macs))
        reason = "most accurate of all (not measured here)"
        return Selection(best.id, True, best.accuracy, None, None, None, reason, self._first_device)


def _after_readings(sensors: Sensors, runtime: Runtime) -> Callable[[], object]:
    """Bounds the runtime's memory after each reading, for as long as it lives or until what this returns is called."""
    reference = weakref.ref(runtime)

    def told(now: float) -> None:
        alive = reference()
        if alive is not None:
            alive.bound_memory(now)

    sensors.after.append(told)
    finalizer = weakref.finalize(runtime, sensors.after.remove, told)
    finalizer.atexit = False
    return finalizer


def _session_options(profile: Profile | None, threads: int | None, provider: str | None, spinning: bool) -> SessionOptions:
    if profile is not None:
        if threads not in (None, 0, profile.device.threads):
            log.warning(
                "the profile %s was measured with %d threads, these sessions use %d: measure again with `sortednet profile`",
                profile.device.name, profile.device.threads, threads,
            )  # fmt: skip
        threads = profile.device.threads if threads is None else threads
        provider = provider or profile.device.execution_provider
    return SessionOptions(threads or 0, provider or CPU, spinning)


def _memory_of(bundle: Bundle, profiles: Sequence[Profile | None], cascades: Sequence[Cascade]) -> dict[Key, float]:
    """What a session takes (MB): measured where it was, else its parameters twice, as ONNX Runtime holds them at worst."""
    found = {}
    for profile in profiles:
        measured = {name: m.memory_mb for name, m in profile.submodels.items()} if profile else {}
        for entry in bundle.manifest.submodels:
            known = measured.get(entry.id)
            key = (entry.id, profile.device.name if profile else _NOT_MEASURED)
            found[key] = known if known is not None else 2 * 4 * entry.params / 2**20
        for cascade in cascades:
            found[cascade.id, key[1]] = found[cascade.first, key[1]] + found[cascade.then, key[1]]
    return found


def examples_in(bundle: Bundle, feed: Mapping[str, Array]) -> int:
    """The size of the batch: of the first input's first axis, where that is free."""
    first = bundle.manifest.inputs[0]
    return feed[first.name].shape[0] if first.shape and isinstance(first.shape[0], str) else 1


def _has_finite_sum(value: Array) -> bool:
    try:
        return isfinite(np.add.reduce(value, None))
    except (RuntimeWarning, FloatingPointError):  # numpy's of what is too large, where these are errors
        return False


def check_inputs(bundle: Bundle, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
    """Inputs by name, as the graphs of this bundle want them. Raises InputError."""
    specs = bundle.manifest.inputs
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InputError(f"input: one array given; this bundle takes {len(specs)}: {', '.join(s.name for s in specs)}")
        inputs = {specs[0].name: inputs}
    if len(inputs) != len(specs) or any(spec.name not in inputs for spec in specs):
        raise InputError(
            f"input: {', '.join(map(repr, inputs)) or 'nothing'} given; allowed is {', '.join(repr(s.name) for s in specs)}"
        )
    sizes: dict[str, int] = {}
    return {spec.name: _checked(spec, inputs[spec.name], sizes) for spec in specs}


def _checked(spec: TensorSpec, value: Array, sizes: dict[str, int]) -> Array:
    """`sizes`: of the free axes by name, as the inputs before this one have them."""
    if not isinstance(value, np.ndarray) or value.dtype.name != spec.dtype:
        kind = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"input {spec.name!r}: dtype {kind}; allowed is {spec.dtype}")
    shape, before = value.shape, dict(sizes)
    if len(shape) != len(spec.shape) or any(
        size < 1 or size != (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size))
        for size, wanted in zip(shape, spec.shape, strict=True)
    ):
        wanted_shape = ", ".join(f"{size} = {before[size]}" if size in before else str(size) for size in spec.shape)
        raise InputError(f"input {spec.name!r}: shape {shape}; allowed is ({wanted_shape})")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"input {spec.name!r}: holds NaN or infinite values; allowed are finite numbers")
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
