"""Replays recorded traces through the policies: the same moments for all, so that they can be compared exactly.

A policy chooses, is charged what that size took at that moment, and learns of nothing else. The oracle knows what every size
takes at every moment. Only moments at which the oracle can meet the deadline count.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.adapt.policies import Kalman, Ours, Policy, Reactive, Static
from benchmarks.adapt.scenarios import SCENARIOS
from device_profiles import Profile, read_profile

TRACES = Path(__file__).parent / "traces"
TUNING_SEEDS = (0,)
"""Constants of the decision code were chosen on these; the figures are of the others."""
DEADLINES = (0.25, 0.5, 1.0, 2.0)
"""Times the largest size's quiet p99."""
HIT = 0.99


@dataclass(frozen=True)
class Trace:
    """Shapes: T moments, S sizes, ascending in latency and accuracy."""

    scenario: str
    seed: int
    seconds: NDArray[np.float64]  # (T,)
    phases: NDArray[np.int64]  # (T,)
    latencies_ms: NDArray[np.float64]  # (T, S)


@dataclass(frozen=True)
class Sizes:
    """What the policies know beforehand."""

    profile: Profile
    names: tuple[str, ...]
    accuracies: tuple[float, ...]  # of the test split

    @property
    def medians(self) -> list[float]:
        return [self.profile.submodels[name].latency_ms.p50 for name in self.names]

    @property
    def tails(self) -> list[float]:
        return [self.profile.submodels[name].latency_ms.p99 for name in self.names]


@dataclass(frozen=True)
class Outcome:
    """Of one policy on one trace with one deadline."""

    scenario: str
    seed: int
    limit_ms: float
    policy: str
    possible: int  # moments at which the oracle meets the deadline
    hits: float  # share of these
    accuracy: float  # mean over these
    on_time: float  # the same with 0 for a missed deadline
    switches: int
    choices: tuple[int, ...]


def read_sizes() -> Sizes:
    profile = read_profile(TRACES / "profile.json")
    with (TRACES / "accuracies.csv").open(newline="") as file:
        accuracies = {row["submodel"]: float(row["accuracy"]) for row in csv.DictReader(file)}
    names = sorted(profile.submodels, key=lambda name: profile.submodels[name].latency_ms.p50)
    return Sizes(profile, tuple(names), tuple(accuracies[name] for name in names))


def read_trace(scenario: str, seed: int, sizes: Sizes) -> Trace:
    with (TRACES / f"{scenario.replace(' ', '-')}-{seed}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Trace(
        scenario,
        seed,
        np.array([float(row["seconds"]) for row in rows]),
        np.array([int(row["phase"]) for row in rows]),
        np.array([[float(row[name]) for name in sizes.names] for row in rows]),
    )


def compare(trace: Trace, sizes: Sizes, limit_ms: float) -> list[Outcome]:
    """Every policy, then what foresight of the phases would give, the oracle last."""
    names, medians = sizes.names, sizes.medians
    known = dict(zip(names, sizes.accuracies, strict=True))
    by_profile = max([size for size, tail in enumerate(sizes.tails) if tail <= limit_ms], default=0)
    policies: dict[str, Policy] = {
        "profile": Static(by_profile),
        "reactive": Reactive(medians, limit_ms, by_profile),
        "kalman": Kalman(medians, limit_ms),
        "ours": Ours(sizes.profile, known, names, limit_ms),
    }
    outcomes = [_outcome(trace, sizes, limit_ms, name, replayed(trace, policy)) for name, policy in policies.items()]
    every = [_outcome(trace, sizes, limit_ms, "static", [size] * len(trace.seconds)) for size in range(len(names))]
    keeping = [outcome for outcome in every if outcome.hits >= HIT]
    static = max(keeping, key=lambda o: o.accuracy) if keeping else max(every, key=lambda o: o.hits)
    met = trace.latencies_ms <= limit_ms
    best = [int(np.flatnonzero(row)[-1]) if row.any() else 0 for row in met]
    foreseen = _outcome(trace, sizes, limit_ms, "phases", _best_of_phases(trace, met))
    return [static, *outcomes, foreseen, _outcome(trace, sizes, limit_ms, "oracle", best)]


def _best_of_phases(trace: Trace, met: NDArray[np.bool_]) -> list[int]:
    """For one who knows beforehand when the load changes and what share of a phase's runs each size will meet, but not which:
    the largest that meets HIT of those that can be met. What no policy that learns from the past can be expected to reach."""
    choices = np.zeros(len(met), int)
    for number in np.unique(trace.phases):
        places = np.flatnonzero(trace.phases == number)
        hits, possible = met[places].mean(axis=0), met[places].any(axis=1).mean()
        keeping = np.flatnonzero(hits >= HIT * possible)
        choices[places] = keeping[-1] if len(keeping) else int(hits.argmax())
    return [int(choice) for choice in choices]


def replayed(trace: Trace, policy: Policy) -> list[int]:
    choices = []
    for now, latencies in zip(trace.seconds, trace.latencies_ms, strict=True):
        size = policy.choose(float(now))
        latency = float(latencies[size])
        policy.observe(size, latency, float(now) + latency / 1e3)
        choices.append(size)
    return choices


def recoveries(trace: Trace, choices: Sequence[int]) -> list[int]:
    """For each step of load: after how many runs the choice is within one size of what it is in the rest of the phase."""
    phases = SCENARIOS[trace.scenario](Random(f"{trace.scenario} {trace.seed}"))
    found = []
    for number, phase in enumerate(phases):
        places = np.flatnonzero(trace.phases == number)
        if not phase.step or len(places) < 20:
            continue
        chosen = np.array(choices)[places]
        settled = np.median(chosen[len(chosen) // 2 :])
        found.append(int(np.argmax(np.abs(chosen - settled) <= 1)))
    return found


def _outcome(trace: Trace, sizes: Sizes, limit_ms: float, policy: str, choices: Sequence[int]) -> Outcome:
    chosen = np.array(choices)
    latencies = trace.latencies_ms[np.arange(len(chosen)), chosen]
    possible = (trace.latencies_ms <= limit_ms).any(axis=1)
    met, accuracy = latencies <= limit_ms, np.array(sizes.accuracies)[chosen]
    return Outcome(
        trace.scenario,
        trace.seed,
        limit_ms,
        policy,
        int(possible.sum()),
        float(met[possible].mean()) if possible.any() else 1.0,
        float(accuracy[possible].mean()) if possible.any() else 1.0,
        float((accuracy * met)[possible].mean()) if possible.any() else 1.0,
        int((chosen[1:] != chosen[:-1]).sum()),
        tuple(choices),
    )
