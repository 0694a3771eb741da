"""The scenarios live: real load, the real `Runtime`, and beside it two policies that take turns with it.

No oracle can be asked here, because one moment is lived only once; `replay` has it.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.adapt.bundles import trained
from benchmarks.adapt.policies import PERCENTILE, Policy, Reactive, Static
from benchmarks.adapt.record import BATCH, runner
from benchmarks.adapt.replay import read_sizes
from benchmarks.adapt.scenarios import SCENARIOS, world
from device_profiles import Profile, write_profile
from selector import Budget, Runtime

SEED = 100
DEADLINE = 1.0
"""Times the largest size's quiet p99."""


def measure(rows_to: Path) -> dict[str, float]:
    """Runs every scenario once and writes what each policy reached."""
    bundle, sizes = trained(), read_sizes()
    (bundle.path / "profiles").mkdir(exist_ok=True)
    profile = bundle.path / "profiles" / "bench.json"
    write_profile(_of_one_example(sizes.profile), profile)
    limit = DEADLINE * sizes.tails[-1]
    runtime = Runtime(bundle, device="bench", battery=lambda: None)
    profile.unlink()  # others use this bundle too
    runs = [runner(bundle, runtime.program(name)) for name in sizes.names]
    images = {name: np.resize(array, (BATCH, *array.shape[1:])) for name, array in bundle.selftest_inputs.items()}
    budget = Budget(latency_ms=limit / BATCH, percentile=PERCENTILE)  # a runtime's budgets are of one example
    places = {name: place for place, name in enumerate(sizes.names)}
    rows: list[dict[str, object]] = []
    for scenario, phases_of in SCENARIOS.items():
        random = Random(f"{scenario} {SEED}")
        by_profile = max([size for size, tail in enumerate(sizes.tails) if tail <= limit], default=0)
        policies: Mapping[str, Policy | None] = {
            "profile": Static(by_profile),
            "reactive": Reactive(sizes.medians, limit, by_profile),
            "ours": None,
        }
        found: dict[str, list[tuple[int, float]]] = {name: [] for name in policies}
        with world() as device:
            begun, ends = time.perf_counter(), 0.0
            for phase in phases_of(random):
                device.enter(phase)
                ends += phase.seconds
                while (now := time.perf_counter() - begun) < ends:
                    for name in random.sample(list(policies), len(policies)):
                        time.sleep(phase.pause_seconds)
                        policy = policies[name]
                        if policy is None:
                            result = runtime.run(images, budget)
                            found[name].append((places[result.selection.submodel], result.latency_ms))
                            continue
                        size, before = policy.choose(now), time.perf_counter()
                        runs[size]()
                        latency = (time.perf_counter() - before) * 1e3
                        policy.observe(size, latency, now)
                        found[name].append((size, latency))
        for name, pairs in found.items():
            met = np.array([latency <= limit for _, latency in pairs])
            accuracy = np.array([sizes.accuracies[size] for size, _ in pairs])
            rows.append(
                {
                    "scenario": scenario,
                    "policy": name,
                    "runs": len(pairs),
                    "hits": round(float(met.mean()), 4),
                    "accuracy": round(float(accuracy.mean()), 4),
                    "on_time": round(float((met * accuracy).mean()), 4),
                }
            )
            print(*rows[-1].values(), flush=True)
    runtime.close()
    with rows_to.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {
        f"live_{key}.{policy}": float(np.mean([float(str(row[key])) for row in rows if row["policy"] == policy]))
        for key in ("hits", "accuracy", "on_time")
        for policy in ("profile", "reactive", "ours")
    }


def _of_one_example(profile: Profile) -> Profile:
    """What was measured of a batch, shared among its examples, as a runtime takes it."""
    submodels = {}
    for name, measured in profile.submodels.items():
        latency = measured.latency_ms
        shares = {key: getattr(latency, key) / BATCH for key in ("p50", "p90", "p99", "mean")}
        submodels[name] = measured.model_copy(update={"latency_ms": latency.model_copy(update=shares)})
    return profile.model_copy(update={"submodels": submodels})


NOTES = {
    "live_hits.ours": "deadlines met in all runs, also where nothing could meet them; mean over the scenarios",
    "live_on_time.ours": "accuracy, 0 for a missed deadline; mean over the scenarios",
}
