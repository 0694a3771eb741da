"""`Runtime`: keeps the sessions of a bundle, runs the sub-model that fits each call, and says which it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from device_profiles import Profile
from exporter.bundle import Bundle
from exporter.manifest import TensorSpec
from exporter.session import CPU, SessionOptions
from selector.battery import Battery, BatteryPolicy, read_battery
from selector.budget import Budget, BudgetError, Selection
from selector.cache import ModelCache, session_opener
from selector.pool import SessionPool
from selector.selector import Selector, find_profile

log = logging.getLogger("sortednet.runtime")

Array = NDArray[Any]
BATTERY_SECONDS = 10.0
_NO_LIMITS = Budget()


class InputError(ValueError):
    """An input of the wrong name, shape or type, or with values that are no numbers."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave, what was chosen for it and why, and how long it took (without the choice)."""

    outputs: dict[str, Array]
    selection: Selection
    latency_ms: float


class Runtime:
    """A bundle on this device.

    `device` names the profile to go by (default: this machine's, or the only one). `threads`, `provider` (an execution
    provider such as "cuda") and `spinning` say how the sessions use the device; the first two default to what that profile
    was measured with. Sessions stay open within `memory_mb`; a sub-model that alone takes more is never chosen.

    With `load_ahead` a run never waits for a session to be opened while one that is open fits the budget: it takes the best
    of those, the wanted one is opened in the background, and so are its neighbours on the frontier. Without, every run
    takes the best of all. `cache` keeps optimized copies of the graphs on this device; False switches it off.
    `battery` reads the state of charge and may return None.

    Raises BundleError when the bundle is damaged or has no such profile, BudgetError when it is not clear which of
    several profiles is meant or nothing fits `memory_mb`, SessionError for an execution provider that is not here.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        device: str | None = None,
        threads: int | None = None,
        provider: str | None = None,
        spinning: bool = True,
        memory_mb: float | None = None,
        load_ahead: bool = True,
        cache: ModelCache | bool = True,
        policy: BatteryPolicy | None = None,
        battery: Callable[[], Battery | None] = read_battery,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        profile = self._profile(device)
        self.options = _session_options(profile, threads, provider, spinning)
        if profile and self.options.threads not in (0, profile.device.threads):
            log.warning(
                "the profile %s was measured with %d threads, these sessions use %d: measure again with `sortednet profile`",
                profile.device.name, profile.device.threads, self.options.threads,
            )  # fmt: skip
        self._memory = _memory_of(self.bundle, profile)
        accuracies = self._fitting(memory_mb)
        known = any(accuracy is not None for accuracy in accuracies.values())
        self.selector = Selector(profile, accuracies, policy=policy) if profile and known else None
        opener = session_opener(self.bundle, self.options, cache)
        self.pool = SessionPool(opener, self._memory.__getitem__, memory_mb)
        self.load_ahead = load_ahead
        self._latest: str | None = None
        self._output_names = [output.name for output in self.bundle.manifest.outputs]
        self._read_battery = battery
        self._battery: Battery | None = None
        self._battery_read_at = -float("inf")

    def run(self, inputs: Mapping[str, Array] | Array, budget: Budget | None = None) -> RunResult:
        """Chooses a sub-model for the budget and runs it; when nothing fits, the nearest one runs.

        Raises InputError naming the input when it does not fit the graph, BudgetError when a limit is given and this
        device has not been measured.
        """
        feed = self.check_inputs(inputs)
        selection, session = self._choose(budget or _NO_LIMITS)
        begun = time.perf_counter()
        try:
            values = session.run(self._output_names, feed)
        except Exception as error:  # ONNX Runtime has one exception type per status code
            raise InputError(f"input: {selection.submodel} cannot compute it: {error}") from error
        elapsed = (time.perf_counter() - begun) * 1e3
        return RunResult(dict(zip(self._output_names, values, strict=True)), selection, elapsed)

    def select(self, budget: Budget) -> Selection:
        """The best for the budget now, whether it is open or not. Without a profile or accuracies only a budget without
        limits has an answer."""
        if self.selector is not None:
            return self.selector.select(budget, self.battery())
        if budget == _NO_LIMITS:
            return self._most_accurate()
        if all(accuracy is None for accuracy in self.bundle.accuracies.values()):
            raise BudgetError("no accuracy is known for any sub-model: export with test data")
        raise BudgetError(f"this device has not been measured: run `sortednet profile {self.bundle.path}` first")

    def battery(self) -> Battery | None:
        """The battery's state, at most BATTERY_SECONDS old."""
        now = time.monotonic()
        if now - self._battery_read_at >= BATTERY_SECONDS:
            self._battery, self._battery_read_at = self._read_battery(), now
        return self._battery

    def session(self, submodel: str) -> ort.InferenceSession:
        """The sub-model's session, opened now if it is not open."""
        return self.pool.load(submodel)

    def check_inputs(self, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
        """The feed for a session. Raises InputError naming the input, what it is and what it must be."""
        return check_inputs(self.bundle, inputs)

    def close(self) -> None:
        """Closes every session."""
        self.pool.close()

    def _choose(self, budget: Budget) -> tuple[Selection, ort.InferenceSession]:
        wanted = self.select(budget)
        name = wanted.submodel
        session = self.pool.get(name)
        if session is not None:
            if name != self._latest:
                self._latest = name
                self._open_neighbours(name)
            return wanted, session
        if self.load_ahead and self.selector is not None:
            instead = self.selector.select(budget, self._battery, among=self.pool.loaded)
            session = self.pool.get(instead.submodel) if instead.feasible else None
            if session is not None and self.pool.fit_together(name, instead.submodel):
                self.pool.load_ahead([name], keep=(instead.submodel,))
                return instead._replace(reason=f"{instead.reason} that is open; {name} is being opened"), session
        self._latest = name
        session = self.pool.load(name)
        self._open_neighbours(name)
        return wanted, session

    def _open_neighbours(self, submodel: str) -> None:
        if self.load_ahead and self.selector is not None:
            self.pool.load_ahead(self.selector.neighbours(submodel), keep=(submodel,))

    def _fitting(self, memory_mb: float | None) -> dict[str, float | None]:
        """The accuracies of those that can be opened within the memory."""
        accuracies = self.bundle.accuracies
        if memory_mb is None:
            return accuracies
        fitting = {name: accuracy for name, accuracy in accuracies.items() if self._memory[name] <= memory_mb}
        if not fitting:
            least = min(self._memory.values())
            raise BudgetError(f"memory_mb = {memory_mb:g}: no sub-model fits; the smallest takes {least:.3g} MB")
        return fitting

    def _profile(self, device: str | None) -> Profile | None:
        if device is None and not self.bundle.devices():
            return None
        return find_profile(self.bundle, device)

    def _most_accurate(self) -> Selection:
        best = max(self.bundle.manifest.submodels, key=lambda s: (s.accuracy or 0.0, s.macs))
        return Selection(best.id, True, best.accuracy, None, None, None, "most accurate of all (not measured here)", "")


def _session_options(profile: Profile | None, threads: int | None, provider: str | None, spinning: bool) -> SessionOptions:
    if profile is not None:
        threads = profile.device.threads if threads is None else threads
        provider = provider or profile.device.execution_provider
    return SessionOptions(threads or 0, provider or CPU, spinning)


def _memory_of(bundle: Bundle, profile: Profile | None) -> dict[str, float]:
    """What a session takes (MB): measured where it was, else its parameters twice, as ONNX Runtime holds them at worst."""
    measured = {name: m.memory_mb for name, m in profile.submodels.items()} if profile else {}
    found = {}
    for entry in bundle.manifest.submodels:
        known = measured.get(entry.id)
        found[entry.id] = known if known is not None else 2 * 4 * entry.params / 2**20
    return found


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
