"""Feedback on simulated worlds: steps, drifts, outliers, idle gaps, a sub-model that is slower than its profile says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf, isfinite, nan

import numpy as np
import pytest
from numpy.typing import NDArray

from selector import Battery, Budget, Selector
from selector.adapt.controller import Controller
from selector.adapt.feedback import SlowDown
from selector.adapt.quiet import Quiet, Tail, fitted, pooled
from selector.choose.budget import Objective
from tests.helpers.costs import ACCURACIES, MEDIANS, profile_of

STEP_S = 0.02


class World:
    """Runs a controller for as many steps as the slow-down has entries; latencies are the profile's times it and noise."""

    def __init__(self, slow: NDArray[np.float64], budget: Budget, seed: int = 0, of: Callable[[str], float] = lambda sub: 1.0):
        profile = profile_of(MEDIANS)
        self.controller = Controller(Selector(profile, ACCURACIES), [profile])
        random = np.random.default_rng(seed)
        noise = np.exp(random.normal(0, 0.03, len(slow)))
        noise *= 1 + (random.random(len(slow)) < 0.003) * random.exponential(1.0, len(slow))
        self.chosen: list[str] = []
        self.met: list[bool] = []
        self.possible: list[bool] = []
        limit = budget.latency_ms or inf
        for step, (factor, luck) in enumerate(zip(slow, noise, strict=True)):
            now = step * STEP_S
            selection = self.controller.choose(budget, now)
            latency = MEDIANS[selection.submodel] * factor * luck * of(selection.submodel)
            self.controller.observe(selection, latency, now + latency / 1e3)
            self.chosen.append(selection.submodel)
            self.met.append(latency <= limit)
            self.possible.append(MEDIANS["s0"] * factor * luck <= limit)

    def hits(self) -> float:
        return float(np.mean(np.array(self.met)[self.possible]))


@pytest.mark.parametrize("seed", range(3))
def test_the_asked_share_of_deadlines_is_met_and_the_best_that_allows_it_is_chosen(seed: int) -> None:
    world = World(np.full(3000, 1.5), Budget(latency_ms=0.6, percentile=99), seed)
    assert world.hits() >= 0.99
    steady = world.chosen[100:]
    # 0.6 ms / 1.5 is 0.4 ms: s9 takes 0.352 at the median and 0.42 at the profile's p99, s7 0.319 there
    assert np.isin(steady, ["s6", "s7", "s8"]).mean() >= 0.98  # else wary for a few runs after one that took much longer
    assert sum(a != b for a, b in pairwise(steady)) < 0.01 * len(steady)


@pytest.mark.parametrize(("before", "after"), [(1.0, 2.0), (2.0, 1.0), (1.0, 4.0), (3.0, 0.8)])
def test_after_a_step_of_load_the_choice_is_right_within_five_runs(before: float, after: float) -> None:
    slow = np.concatenate([np.full(500, before), np.full(300, after)])
    world = World(slow, Budget(latency_ms=0.8, percentile=90))
    settled = world.chosen[-1]
    assert abs(int(world.chosen[504][1:]) - int(settled[1:])) <= 1
    assert sum(world.met[505:]) >= 0.9 * len(world.met[505:])


def test_a_slow_drift_is_followed() -> None:
    world = World(np.linspace(1, 2.5, 2000), Budget(latency_ms=0.7, percentile=90))
    assert world.hits() >= 0.9
    assert int(world.chosen[-1][1:]) < int(world.chosen[50][1:])


def test_a_single_outlier_changes_nothing() -> None:
    slow = np.ones(400)
    slow[200] = 8.0
    world = World(slow, Budget(latency_ms=0.6, percentile=90))
    assert world.chosen[201:210] == world.chosen[191:200]


def test_after_a_single_outlier_the_choice_for_the_99th_percentile_is_smaller_for_a_few_runs_only() -> None:
    slow = np.ones(600)
    slow[400] = 8.0
    world = World(slow, Budget(latency_ms=0.6, percentile=99))
    sizes = [int(name[1:]) for name in world.chosen]
    assert sizes[401] <= sizes[399] - 5  # surprises come in clusters
    assert sizes[406] >= sizes[399] - 2
    assert sizes[430] == sizes[399]


def test_where_surprises_are_frequent_the_margin_grows_until_the_deadline_is_kept() -> None:
    random = np.random.default_rng(0)
    slow = np.where(random.random(4000) < 0.05, 2.0, 1.0)
    world = World(slow, Budget(latency_ms=0.6, percentile=99))
    assert np.mean(world.met[1000:]) >= 0.985


def test_without_feedback_a_selection_is_the_profiles() -> None:
    profile = profile_of(MEDIANS)
    selector = Selector(profile, ACCURACIES)
    controller = Controller(selector, [profile], feedback=False)
    budget = Budget(latency_ms=0.6)
    for step in range(20):
        selection = controller.choose(budget, step * STEP_S)
        assert selection == selector.select(budget)
        controller.observe(selection, 5.0, step * STEP_S)


def test_a_sub_model_that_alone_is_slower_is_avoided_and_tried_again_later() -> None:
    def of(sub: str) -> float:
        return 3.0 if sub == "s10" else 1.0

    world = World(np.ones(6000), Budget(latency_ms=0.45, percentile=50), of=of)  # s10 takes 0.405 by its profile
    late = world.chosen[50:]
    assert 0 < late.count("s10") < 0.02 * len(late)
    assert late.count("s9") > 0.9 * len(late)


def test_the_first_run_after_an_idle_gap_is_taken_for_what_it_is() -> None:
    slow_down = SlowDown(Quiet.of(profile_of(MEDIANS)))
    now = 0.0
    for _ in range(60):  # bursts of five: the first takes twice as long
        now += 2.0
        for place in range(5):
            slow_down.observe("s3", 1.0, 2.0 if place == 0 else 1.0, now)
            now += 0.01
    assert slow_down.latency(50, 1.0, now) == pytest.approx(1.0, abs=0.05)
    assert slow_down.latency(50, 1.0, now + 2.0) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("latency", [nan, inf, 0.0, -1.0])
def test_what_is_no_time_is_left_out(latency: float) -> None:
    slow_down = SlowDown(Quiet.of(profile_of(MEDIANS)))
    slow_down.observe("s3", 1.0, 1.3, 0.0)
    before = slow_down.latency(99, 1.0, 0.1)
    slow_down.observe("s3", 1.0, latency, 0.05)
    assert slow_down.latency(99, 1.0, 0.1) == before


def test_a_clock_that_jumps_back_or_far_ahead_stops_nothing() -> None:
    profile = profile_of(MEDIANS)
    controller = Controller(Selector(profile, ACCURACIES), [profile])
    for now in (0.0, 1.0, -1e6, 5.0, 1e12, 3.0):
        selection = controller.choose(Budget(latency_ms=0.5), now, Battery(percent=50))
        controller.observe(selection, 0.3, now)
        assert selection.submodel in MEDIANS


def test_a_deadline_that_nothing_meets_gives_the_nearest_and_says_so() -> None:
    world = World(np.full(50, 20.0), Budget(latency_ms=0.5, percentile=99))
    selection = world.controller.choose(Budget(latency_ms=0.5, percentile=99), 1.0)
    assert (selection.submodel, selection.feasible) == ("s0", False)
    assert "nothing fits" in selection.reason


def test_of_two_profiles_the_one_that_is_slowed_down_is_left_and_tried_again() -> None:
    """Two threads are twice as fast, until another program takes a core."""
    one, two = profile_of(MEDIANS, "one"), profile_of({n: 0.5 * ms for n, ms in MEDIANS.items()}, "two")
    controller = Controller(Selector([one, two], ACCURACIES), [one, two])
    budget = Budget(latency_ms=0.5, percentile=50)
    used = []
    for step in range(1500):
        now = step * STEP_S
        selection = controller.choose(budget, now)
        busy = 400 <= step < 800
        factor = 4.0 if busy and selection.device == "two" else 1.0
        controller.observe(
            selection, factor * (one if selection.device == "one" else two).submodels[selection.submodel].latency_ms.p50, now
        )
        used.append(selection.device)
    assert set(used[100:400]) == {"two"}
    assert used[450:800].count("one") > 300
    assert used[-300:].count("two") > 290


@pytest.mark.parametrize("objective", ["quality", "latency", "energy"])
@pytest.mark.parametrize("feedback", [True, False])
def test_of_two_profiles_the_nearest_runs_where_nothing_fits(objective: Objective, feedback: bool) -> None:
    one, two = profile_of({"small": 2.0, "large": 8.0}, "one"), profile_of({"large": 50.0}, "two")
    controller = Controller(Selector([one, two], {"small": 0.8, "large": 0.9}), [one, two], feedback=feedback)
    selection = controller.choose(Budget(latency_ms=1, objective=objective), 0.0)
    assert (selection.submodel, selection.device, selection.feasible) == ("small", "one", False)
    floor = Budget(latency_ms=1, min_quality=0.9, objective=objective)
    assert controller.choose(floor, 0.0).submodel == "small"  # misses the floor by an eleventh, the limit as before


def test_a_run_of_one_profile_after_long_says_little_of_another_that_has_just_run() -> None:
    one, two = profile_of({"m": 4.0}, "one"), profile_of({"m": 4.4}, "two")
    controller, now = Controller(Selector([one, two], {"m": 0.8}), [one, two]), 0.0
    first, second = (controller.selector.select(Budget(), among=[("m", device)]) for device in ("one", "two"))
    for selection, latency, runs in ((first, 4.0, 20), (second, 4.4, 20), (second, 8.8, 200)):
        for _ in range(runs):
            now += STEP_S
            controller.observe(selection, latency, now)
    assert controller.slow_down("two") == pytest.approx(2.0)
    controller.observe(first, 4.0, now + STEP_S)
    assert controller.slow_down("two") == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(("slower", "nearest"), [(1.3, "s1"), (1.13, "s0")])
def test_what_is_slower_by_itself_counts_as_it_is_where_nothing_fits(slower: float, nearest: str) -> None:
    profile = profile_of(MEDIANS)
    controller = Controller(Selector(profile, ACCURACIES), [profile])
    budget, now = Budget(latency_ms=0.11, percentile=50), 0.0
    selection = controller.choose(budget, now)
    for submodel, factor, runs in (("s5", 1.0, 20), ("s0", slower, 2)):
        for _ in range(runs):
            now += STEP_S
            controller.observe(selection._replace(submodel=submodel), factor * MEDIANS[submodel], now)
    assert controller.slow_downs["bench"].suspicious == ("s0",)
    selection = controller.choose(budget, now)  # s0 would take 0.1 ms, s1 takes 0.115
    assert (selection.submodel, selection.feasible) == (nearest, False)
    assert "nothing fits" in selection.reason


@pytest.mark.parametrize("expected", [1e-320, 1e-9, 1e9, 1e308])
def test_a_profile_that_is_far_off_gives_finite_factors(expected: float) -> None:
    slow_down = SlowDown(Quiet(dict.fromkeys((50, 90, 99), Tail(0.0, 0.1, 0.1))))
    for step in range(30):
        slow_down.observe("s0", expected, 1.0 + step % 3, step * 0.01)
        assert isfinite(slow_down.latency(99, expected, step * 0.01))
        assert isfinite(slow_down.reach(99, 1.0, step * 0.01))


def test_nothing_to_choose_among_is_everything() -> None:
    profiles = [profile_of(MEDIANS, "one"), profile_of(MEDIANS, "other")]
    controller = Controller(Selector(profiles, ACCURACIES), profiles)
    assert controller.choose(Budget(latency_ms=5.0), 0.0, among=()).submodel in MEDIANS


@pytest.mark.parametrize(("stall", "share"), [(0.0, 0.2), (4.1, 0.0), (0.07, 0.03), (4.0, 0.5)])
def test_the_tail_of_a_device_is_a_part_in_milliseconds_and_a_part_in_proportion(stall: float, share: float) -> None:
    medians = [0.1 * 1.5**step for step in range(12)]
    tail = fitted(medians, [stall + share * ms + (30.0 if step == 7 else 0.0) for step, ms in enumerate(medians)])
    assert (tail.stall_ms, tail.share) == pytest.approx((stall, share), abs=1e-2)  # one that was off moves nothing


def stalled(runs: int, share: float, seed: int = 0) -> tuple[Controller, list[str], list[bool]]:
    """What is chosen for 8.49 ms at the 99th percentile, where a share of the runs waits 4 ms for the processor."""
    medians = {f"s{i}": ms for i, ms in enumerate((0.1, 0.2, 0.4, 0.8, 1.53, 6.0))}
    profile = profile_of(medians)
    waits = {
        name: measured.model_copy(update={"latency_ms": measured.latency_ms.model_copy(update={"p99": medians[name] + 4.13})})
        for name, measured in profile.submodels.items()
    }
    profile = pooled(profile.model_copy(update={"submodels": waits}))
    controller = Controller(Selector(profile, {f"s{i}": 0.8 + 0.02 * i for i in range(6)}), [profile])
    random, budget, chosen, met = np.random.default_rng(seed), Budget(latency_ms=8.49, percentile=99), [], []
    for step in range(runs):
        selection = controller.choose(budget, step * STEP_S)
        latency = medians[selection.submodel] * random.normal(1, 0.02) + 4.1 * (random.random() < share)
        controller.observe(selection, latency, step * STEP_S)
        chosen.append(selection.submodel)
        met.append(latency <= 8.49)
    return controller, chosen, met


@pytest.mark.parametrize("share", [0.0, 0.006, 0.05])
def test_stalls_of_a_fixed_length_keep_no_network_from_a_deadline_that_it_meets_with_one(share: float) -> None:
    """Multiplied with what is typical, 41 times a network of 0.1 ms, nothing would fit."""
    _, chosen, met = stalled(2000, share)
    assert chosen[0] == "s4"
    assert chosen.count("s4") >= 0.97 * len(chosen)
    assert np.mean(met) >= 0.99


def test_a_stall_of_a_small_network_is_added_to_a_large_one_and_not_multiplied() -> None:
    controller, *_ = stalled(1, 0.0)
    (slow_down,) = controller.slow_downs.values()
    for step in range(40):
        slow_down.observe("s0", 0.1, 4.2 if step % 10 == 5 else 0.1, step * STEP_S)
    now = 40 * STEP_S
    assert slow_down.latency(99, 0.1, now) == pytest.approx(4.4, rel=0.1)
    assert slow_down.latency(99, 1.53, now) == pytest.approx(5.9, rel=0.1)
    assert slow_down.latency(99, slow_down.reach(99, 8.49, now), now) == pytest.approx(8.49, rel=0.02)
