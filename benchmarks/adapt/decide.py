"""What a decision and what is learnt from a run cost, between real runs, with 160 sub-models."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.adapt.bundles import trained
from benchmarks.adapt.record import runner
from device_profiles import Profile
from exporter.bundle.session import CPU, SessionOptions
from selector import Budget, Selector
from selector.adapt.controller import Controller
from selector.run.profiling import profile_bundle
from selector.run.program import program_opener

RUNS = 4000
NAME = "adapt-160"


def measure() -> dict[str, float]:
    """Choosing and observing in microseconds, medians; a real inference of half a millisecond in between, so that the
    processor's caches are as in use."""
    bundle = trained()
    profile = profile_bundle(bundle, device=NAME, threads=1, repeats=5)
    costs, candidates = Selector(profile, bundle.accuracies).afforded_by("latency_ms", 99)
    run = runner(bundle, program_opener(bundle, SessionOptions(1, CPU, True), True)(candidates[len(candidates) // 2].submodel))
    one = [Budget(latency_ms=costs[len(costs) // 2], percentile=99)]
    many = [Budget(latency_ms=float(cost), percentile=99) for cost in np.geomspace(costs[1], 2 * costs[-1], 50)]
    nothing = [Budget(latency_ms=costs[0] / 10, percentile=99)]
    figures = {"decide_submodels": float(len(profile.submodels))}
    for name, budgets in (("", one), (".changing", many), (".infeasible", nothing)):
        controller = Controller(Selector(profile, bundle.accuracies), [profile])
        figures[f"decide_us_p50{name}"] = _median_us(controller, budgets, profile_medians(profile), run)
    return figures


def profile_medians(profile: Profile) -> dict[str, float]:
    return {name: measured.latency_ms.p50 for name, measured in profile.submodels.items()}


def _median_us(controller: Controller, budgets: Sequence[Budget], medians: dict[str, float], run) -> float:  # type: ignore[no-untyped-def]
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, RUNS))
    taken = []
    for number in range(RUNS):
        budget = budgets[number % len(budgets)]
        begun = time.perf_counter()
        selection = controller.choose(budget, begun)
        chosen = time.perf_counter()
        run()
        latency = medians[selection.submodel] * noise[number]
        ran = time.perf_counter()
        controller.observe(selection, latency, ran)
        taken.append(chosen - begun + time.perf_counter() - ran)
    return float(np.median(taken)) * 1e6


NOTES = {
    "decide_us_p50": "Controller.choose and observe, the same budget as before; a real inference in between",
    "decide_us_p50.changing": "the same, another of 50 budgets each time",
    "decide_us_p50.infeasible": "the same, with a deadline that nothing meets",
}
