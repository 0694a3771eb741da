"""`Runtime`: keeps the sessions of a bundle, runs the sub-model that fits each call, and says which it was."""

from __future__ import annotations

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
from exporter.session import open_session
from selector.battery import Battery, BatteryPolicy, read_battery
from selector.budget import Budget, BudgetError, Selection
from selector.selector import Selector, find_profile

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

    `device` names the profile to go by (default: this machine's, or the only one); `threads` defaults to what that
    profile was measured with. `battery` reads the state of charge and may return None.

    Raises BundleError when the bundle is damaged or has no such profile, BudgetError when it is not clear which of
    several profiles is meant.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        device: str | None = None,
        threads: int | None = None,
        policy: BatteryPolicy | None = None,
        battery: Callable[[], Battery | None] = read_battery,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        profile = self._profile(device)
        accuracies = self.bundle.accuracies
        known = any(accuracy is not None for accuracy in accuracies.values())
        self.selector = Selector(profile, accuracies, policy=policy) if profile and known else None
        self.threads = threads if threads is not None else profile.device.threads if profile else 0
        self._sessions: dict[str, ort.InferenceSession] = {}
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
        selection = self.select(budget or _NO_LIMITS)
        session = self.session(selection.submodel)
        begun = time.perf_counter()
        try:
            values = session.run(self._output_names, feed)
        except Exception as error:  # ONNX Runtime has one exception type per status code
            raise InputError(f"input: {selection.submodel} cannot compute it: {error}") from error
        elapsed = (time.perf_counter() - begun) * 1e3
        return RunResult(dict(zip(self._output_names, values, strict=True)), selection, elapsed)

    def select(self, budget: Budget) -> Selection:
        """What `run` would choose now. Without a profile or accuracies only a budget without limits has an answer."""
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
        """The sub-model's session, opened at its first use and kept."""
        found = self._sessions.get(submodel)
        if found is None:
            found = self._sessions[submodel] = open_session(self.bundle.graph_path(submodel), threads=self.threads)
        return found

    def check_inputs(self, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
        """The feed for a session. Raises InputError naming the input, what it is and what it must be."""
        return check_inputs(self.bundle, inputs)

    def _profile(self, device: str | None) -> Profile | None:
        if device is None and not self.bundle.devices():
            return None
        return find_profile(self.bundle, device)

    def _most_accurate(self) -> Selection:
        best = max(self.bundle.manifest.submodels, key=lambda s: (s.accuracy or 0.0, s.macs))
        return Selection(best.id, True, best.accuracy, None, None, None, "most accurate of all (not measured here)", "")


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
