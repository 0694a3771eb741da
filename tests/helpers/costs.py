"""Selectors of costs that are written down."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from device_profiles import LatencyMs, Measurement, Profile
from device_profiles.schema import Sustained
from selector import BatteryPolicy, Selector
from tests.conftest import device_info

DEVICE = device_info()


class Cost(NamedTuple):
    """One sub-model of a profile; None: nobody knows."""

    p50: float
    p90: float
    p99: float
    accuracy: float
    energy_mj: float | None = None
    memory_mb: float | None = None


def flat(latency_ms: float, accuracy: float, energy_mj: float | None = None, memory_mb: float | None = None) -> Cost:
    """The same latency at every percentile."""
    return Cost(latency_ms, latency_ms, latency_ms, accuracy, energy_mj, memory_mb)


def selector_of(costs: dict[str, Cost], policy: BatteryPolicy | None = None) -> Selector:
    measured = {}
    for name, cost in costs.items():
        figures = {k: v for k, v in (("energy_mj", cost.energy_mj), ("memory_mb", cost.memory_mb)) if v is not None}
        measured[name] = Measurement(
            latency_ms=LatencyMs(p50=cost.p50, p90=cost.p90, p99=cost.p99, mean=cost.p50, n=10),
            source=dict.fromkeys(["latency_ms", *figures], "measured"),
            **figures,
        )
    profile = Profile(device=DEVICE, bundle="0" * 64, measured_at=datetime.now(UTC), submodels=measured)
    return Selector(profile, {name: cost.accuracy for name, cost in costs.items()}, policy=policy)


MEDIANS = {f"s{i}": 0.1 * 1.15**i for i in range(20)}


ACCURACIES = {f"s{i}": 0.80 + 0.008 * i for i in range(20)}


def profile_of(medians: dict[str, float], name: str = "bench") -> Profile:
    measured = {
        sub: Measurement(
            latency_ms=LatencyMs(p50=ms, p90=1.05 * ms, p99=1.2 * ms, mean=ms, n=100), source={"latency_ms": "measured"}
        )
        for sub, ms in medians.items()
    }
    device = DEVICE.model_copy(update={"name": name})
    return Profile(device=device, bundle="0" * 64, measured_at=datetime.now(UTC), submodels=measured)


def sustained(times: float = 1.5, energy: float | None = None, **more: float) -> Sustained:
    """Of ten minutes of `large`: so many times slower after the first, and so many times the energy."""
    before, after = (LatencyMs(p50=ms, p90=1.1 * ms, p99=1.2 * ms, mean=ms, n=100) for ms in (10.0, 10.0 * times))
    energies = {} if energy is None else {"first_energy_mj": 20.0, "after_energy_mj": 20.0 * energy}
    return Sustained.model_validate({"submodel": "large", "minutes": 10, "first": before, "after": after, **energies, **more})
