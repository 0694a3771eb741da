"""What a decision of the selector costs, for 160 sub-models."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from benchmarks.path.found import Found
from device_profiles import LatencyMs, Measurement, Profile, describe_device
from selector import Budget, Selector

SUBMODELS = 160
CALLS = 20_000


def measure() -> Found:
    profile, accuracies = _profile()
    selector = Selector(profile, accuracies)
    draw = random.Random(1)
    one = [Budget(latency_ms=draw.uniform(0.5, 12)) for _ in range(200)]
    several = [
        Budget(
            latency_ms=draw.uniform(2, 12),
            memory_mb=draw.uniform(2, 40),
            energy_mj=draw.uniform(5, 60),
            min_accuracy=draw.uniform(0.7, 0.9),
            percentile=draw.choice((50.0, 90.0, 99.0)),
        )
        for _ in range(200)
    ]
    return Found(
        {"select_us_p50": _median_us(selector, one), "select_several_us_p50": _median_us(selector, several)},
        {
            "select_us_p50": f"{CALLS} calls, 200 different budgets with one limit, {SUBMODELS} sub-models",
            "select_several_us_p50": "the same with limits on latency, memory, energy, accuracy and a percentile",
        },
    )


def _median_us(selector: Selector, budgets: Sequence[Budget]) -> float:
    taken = []
    for i in range(CALLS):
        budget = budgets[i % len(budgets)]
        begun = time.perf_counter_ns()
        selector.select(budget)
        taken.append(time.perf_counter_ns() - begun)
    return float(np.median(taken)) / 1e3


def _profile() -> tuple[Profile, dict[str, float]]:
    """Costs that grow with size and noise on all of them, so that the frontier is neither everything nor a few."""
    draw = random.Random(0)
    measured, accuracies = {}, {}
    for i in range(SUBMODELS):
        size = 0.05 + 0.95 * i / SUBMODELS
        p50 = 10 * size * draw.uniform(0.9, 1.1)
        latency = LatencyMs(p50=p50, p90=1.1 * p50, p99=1.4 * p50, mean=p50, n=100)
        source = {"latency_ms": "measured", "memory_mb": "measured", "energy_mj": "measured"}
        energy, memory = 50 * size * draw.uniform(0.9, 1.1), 32 * size * draw.uniform(0.9, 1.1)
        measured[f"s{i}"] = Measurement(latency_ms=latency, memory_mb=memory, energy_mj=energy, source=source)  # type: ignore[arg-type]
        accuracies[f"s{i}"] = 0.95 - 0.3 * (1 - size) ** 2 + draw.uniform(-0.01, 0.01)
    device = describe_device(onnxruntime="0", execution_provider="none")
    return Profile(device=device, bundle="0" * 64, measured_at=datetime.now(UTC), submodels=measured), accuracies
