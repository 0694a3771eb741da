"""The policies over all recorded traces: a table of scenarios and policies, the figures, and the plots."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.adapt.record import SEEDS
from benchmarks.adapt.replay import DEADLINES, TUNING_SEEDS, Outcome, Sizes, compare, read_sizes, read_trace, recoveries
from benchmarks.adapt.scenarios import SCENARIOS

POLICIES = ("static", "profile", "reactive", "kalman", "ours", "phases", "oracle")
COLOURS = dict(zip(POLICIES, ("#8a8f98", "#9ecae1", "#e0a030", "#6a4c93", "#d1495b", "#3a9d6e", "#2e6f9e"), strict=True))


def outcomes(seeds: Iterable[int], sizes: Sizes) -> list[Outcome]:
    found = []
    for scenario in SCENARIOS:
        for seed in seeds:
            trace = read_trace(scenario, seed, sizes)
            for deadline in DEADLINES:
                found += compare(trace, sizes, deadline * sizes.tails[-1])
    return found


def measure(results: Path) -> dict[str, float]:
    """Of the seeds that no constant was chosen on."""
    sizes = read_sizes()
    found = outcomes([seed for seed in SEEDS if seed not in TUNING_SEEDS], sizes)
    _write(found, results / "policies.csv")
    plot_policies(found, results / "policies.png")
    plot_timeline(sizes, results / "timeline.png")
    return figures(found, sizes)


def figures(found: Sequence[Outcome], sizes: Sizes) -> dict[str, float]:
    """`hits` and `accuracy` are means over the runs at which the oracle could; relative to the oracle where it says so."""
    values: dict[str, float] = {}
    by_scenario: dict[str, tuple[float, float]] = {}
    for scenario in SCENARIOS:
        own, oracle = _together(found, scenario, "ours"), _together(found, scenario, "oracle")
        by_scenario[scenario] = own[0], own[1] / oracle[1]
        name = scenario.replace(" ", "_")
        values[f"deadline_hit.{name}"], values[f"accuracy_vs_oracle.{name}"] = by_scenario[scenario]
    values["deadline_hit"] = mean(hit for hit, _ in by_scenario.values())
    values["accuracy_vs_oracle"] = mean(share for _, share in by_scenario.values())
    for policy in POLICIES[:-1]:
        both = [(_together(found, scenario, policy), _together(found, scenario, "oracle")) for scenario in SCENARIOS]
        values[f"policy_hit.{policy}"] = mean(this[0] for this, _ in both)
        values[f"policy_accuracy_vs_oracle.{policy}"] = mean(this[1] / oracle[1] for this, oracle in both)
        values[f"policy_on_time_vs_oracle.{policy}"] = mean(this[2] / oracle[2] for this, oracle in both)
    ours = [outcome for outcome in found if outcome.policy == "ours"]
    steps = [step for o in ours for step in recoveries(read_trace(o.scenario, o.seed, sizes), o.choices)]
    values["recover_runs"] = float(np.median(steps))
    values["recover_runs_p90"] = float(np.quantile(steps, 0.9))
    values["recover_within_5"] = mean(step <= 5 for step in steps)
    values["recover_steps"] = float(len(steps))
    calm = [outcome for outcome in ours if outcome.scenario == "steady"]
    values["switches_per_100"] = 100 * sum(o.switches for o in calm) / sum(len(o.choices) for o in calm)
    return values


def _together(found: Sequence[Outcome], scenario: str, policy: str) -> tuple[float, float, float]:
    """Hits, accuracy, and accuracy in time, over all runs at which the oracle could."""
    those = [o for o in found if o.scenario == scenario and o.policy == policy and o.possible]
    weights = np.array([o.possible for o in those], float)
    hits, accuracy, on_time = np.average([(o.hits, o.accuracy, o.on_time) for o in those], axis=0, weights=weights)
    return float(hits), float(accuracy), float(on_time)


def _write(found: Sequence[Outcome], path: Path) -> None:
    names = ["scenario", "seed", "limit_ms", "policy", "possible", "hits", "accuracy", "on_time", "switches"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for outcome in found:
            values = [getattr(outcome, name) for name in names]
            writer.writerow([round(value, 5) if isinstance(value, float) else value for value in values])


def plot_policies(found: Sequence[Outcome], path: Path) -> None:
    """Per scenario: how often each policy met the deadline, and how accurate it was relative to the oracle."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, (len(SCENARIOS) + 1) // 2, figsize=(15, 7), layout="constrained")
    for axis, scenario in zip(axes.flat, SCENARIOS, strict=False):
        oracle = _together(found, scenario, "oracle")
        for policy in POLICIES:
            hits, accuracy, _ = _together(found, scenario, policy)
            axis.plot(100 * hits, 100 * accuracy / oracle[1], "o", color=COLOURS[policy], ms=9, label=policy)
        axis.axvline(99, color="#999999", lw=0.8, ls=":")
        axis.axhline(99, color="#999999", lw=0.8, ls=":")
        axis.set_title(scenario, loc="left")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("deadlines met, of those possible (%)")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, of the oracle's (%)")
    axes.flat[0].legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_timeline(sizes: Sizes, path: Path, scenario: str = "load steps", seed: int = 2) -> None:
    """One trace: what the chosen size took, and how accurate it was, for ours, the reactive policy and the oracle."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    trace = read_trace(scenario, seed, sizes)
    limit = sizes.tails[-1]
    figure, (above, below) = plt.subplots(2, 1, figsize=(12, 6.5), sharex=True, layout="constrained")
    for outcome in compare(trace, sizes, limit):
        if outcome.policy not in ("reactive", "ours", "oracle"):
            continue
        chosen = np.array(outcome.choices)
        latencies = trace.latencies_ms[np.arange(len(chosen)), chosen]
        accuracies = 100 * np.array(sizes.accuracies)[chosen]
        style = {"lw": 1.2, "color": COLOURS[outcome.policy], "alpha": 0.9}
        above.plot(trace.seconds, latencies, label=f"{outcome.policy}: {outcome.hits:.1%} in time", **style)
        below.step(trace.seconds, accuracies, where="post", label=f"{outcome.policy}: {100 * outcome.accuracy:.2f} %", **style)
    above.axhline(limit, color="black", lw=0.8, ls=":")
    above.set_yscale("log")
    above.set_ylabel("latency (ms), deadline dotted")
    below.set_ylabel("accuracy of the chosen size (%)")
    below.set_xlabel(f"seconds of the trace “{scenario}”")
    for axis in (above, below):
        for boundary in np.flatnonzero(np.diff(trace.phases)):
            axis.axvline(trace.seconds[boundary + 1], color="#bbbbbb", lw=0.8)
        axis.legend(frameon=False, loc="upper right")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=100)
    plt.close(figure)


NOTES = {
    "deadline_hit": "share of the runs in time, of those at which some size would have been; p99 asked; mean of the scenarios",
    "accuracy_vs_oracle": "mean accuracy over the same runs, relative to the oracle's; mean over the scenarios",
    "policy_on_time_vs_oracle.ours": "accuracy, 0 for a missed deadline, relative to the oracle's",
    "policy_hit.static": "the one size that in hindsight was the most accurate of those that met 99 %",
    "policy_hit.phases": "for one who foresees every change of load and how often each size will be in time",
    "policy_hit.kalman": "ALERT's filter",
    "recover_runs": "after a step of load: runs until within one size of the median of the phase's second half; median",
    "switches_per_100": "scenario steady, where every switch is needless",
}
