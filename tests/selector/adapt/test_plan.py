"""Battery plans: the linear program's optimum, and a simulated battery that drains otherwise than the profile says."""

from __future__ import annotations

import time
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import selector.choose.clock
from selector import Battery, Budget, Runtime
from selector.adapt.controller import Controller
from selector.adapt.plan import Planner, best_mix, concave_frontier
from selector.choose.budget import BatteryPlan
from tests.helpers.costs import flat, profile_of, selector_of
from tests.helpers.plans import ACCURACIES, ENERGIES, NOON, candidates


@pytest.mark.parametrize(
    ("said", "seconds", "rate"),
    [
        ({"per_second": 2, "for_hours": 3}, 10800, 2.0),
        ({"per_hour": 60, "until": "18:30"}, 6.5 * 3600, 1 / 60),
        ({"per_hour": 60, "until": "11:00"}, 23 * 3600, 1 / 60),
        ({"per_second": 1, "until": "14:30+02:00"}, 1800, 1.0),
        ({"per_second": 1, "until": "00:30+09:00"}, 3.5 * 3600, 1.0),  # tomorrow there
        ({"per_second": 1, "until": "2026-11-25T12:10:00+00:00"}, 600, 1.0),
        ({"per_second": 1, "until": "2026-11-25T11:00:00+00:00"}, 0, 1.0),
    ],
)
def test_how_long_and_how_often(said: dict[str, Any], seconds: float, rate: float) -> None:
    plan = BatteryPlan.model_validate(said)
    assert plan.seconds(NOON) == seconds
    assert plan.rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"per_second": 1}, "neither given; needed is one of until and for_hours"),
        ({"for_hours": 1}, "neither given; needed is one of per_second and per_hour"),
        ({"per_second": 1, "per_hour": 3600, "for_hours": 1}, "per_second and per_hour given"),
        ({"per_second": 1, "until": "18:00", "for_hours": 1}, "until and for_hours given"),
        ({"per_second": 0, "for_hours": 1}, "greater than 0"),
        ({"per_second": 1, "for_hours": inf}, "finite"),
        ({"per_second": 1, "for_hours": 1, "reserve_percent": 100}, "less than 100"),
        ({"per_second": 1, "until": "soon"}, "until"),
        ({"per_second": 1, "for_hours": 1, "hours": 2}, "hours"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BatteryPlan.model_validate(said)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 99)), min_size=1, max_size=8, unique_by=lambda pair: pair[0]),
    st.floats(0.5, 45),
)
def test_the_mix_is_the_linear_programs_optimum(points: list[tuple[int, int]], energy: float) -> None:
    from scipy.optimize import linprog

    known = candidates(tuple(float(e) for e, _ in points), tuple(a / 100 for _, a in points))
    mix = best_mix(concave_frontier(known), energy)
    assert sum(share.share for share in mix) == pytest.approx(1)
    costs, gains = [c.energy_mj for c in known], [-c.quality for c in known]
    optimum = linprog(gains, A_ub=[costs], b_ub=[energy], A_eq=[[1.0] * len(known)], b_eq=[1.0])
    if energy < min(costs):
        assert optimum.status == 2  # impossible: then the least there is
        assert mix[0].candidate.energy_mj == min(costs)
    else:
        assert sum(s.share * s.candidate.energy_mj for s in mix) <= energy + 1e-9
        assert sum(s.share * s.candidate.quality for s in mix) == pytest.approx(-optimum.fun)


class Battery60:
    """A battery that `mean_mj` per inference empties within the hours, drained `scale` times what the profile says and by
    `idle` watts; tells whole per cent."""

    def __init__(self, plan: BatteryPlan, hours: float, scale: float, idle: float, mean_mj: float = 10.0) -> None:
        self.capacity = mean_mj / 1e3 * plan.rate * hours * 3600 + idle * hours * 3600
        self.left, self.scale, self.idle, self.rate = self.capacity, scale, idle, plan.rate

    def percent(self) -> float:
        return min(100.0, max(0.0, float(round(100 * self.left / self.capacity))))

    def drain(self, energy_mj: float) -> None:
        self.left -= self.scale * energy_mj / 1e3 + self.idle / self.rate


@pytest.mark.parametrize("relative", [False, True], ids=["joules", "relative"])
@pytest.mark.parametrize("declared", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_a_battery_lasts_as_long_as_planned_at_nearly_the_best_accuracy(scale: float, declared: float, relative: bool) -> None:
    hours, idle = 4.0, 0.02
    bare = BatteryPlan(per_second=1, for_hours=hours, reserve_percent=5)
    battery = Battery60(bare, hours, scale, idle)
    capacity_wh = None if relative else battery.capacity / 3600
    plan = bare.model_copy(update={"capacity_wh": capacity_wh, "idle_watts": declared * idle})
    planner = Planner(plan, candidates(), battery.percent(), 0.0, hours * 3600)
    gained, second = [], 0
    while battery.left > 0.05 * battery.capacity and second < 1.2 * hours * 3600:
        if second % 10 == 0:
            planner.reading(battery.percent(), float(second))
        chosen = planner.next()
        planner.spent(chosen.key)
        battery.drain(chosen.energy_mj)
        if second < hours * 3600:
            gained.append(chosen.quality)
        second += 1
    assert second / (hours * 3600) == pytest.approx(1.0, abs=0.02)
    truly = 1e3 * (0.95 * battery.capacity - idle * hours * 3600) / (scale * hours * 3600)
    best = sum(share.share * share.candidate.quality for share in best_mix(planner.hull, truly))
    assert np.mean(gained) >= 0.98 * best


@pytest.mark.parametrize("drain", ["high", "low", "rises"])
@pytest.mark.parametrize("said", ["whole", "fives", "exact", "stuck", "jumps"])
def test_a_battery_that_tells_its_charge_badly_lasts_too(drain: str, said: str) -> None:
    hours, mean_mj, idle = 4.0, 10.0, 0.01
    seconds = round(hours * 3600)
    scale = np.full(2 * seconds, {"high": 1.3, "low": 0.7, "rises": 1.0}[drain])
    scale[seconds // 2 :] = 1.3 if drain == "rises" else scale[0]
    left = capacity = float((scale[:seconds] * (mean_mj / 1e3 + idle)).sum() / 0.95)
    bare = BatteryPlan(per_second=1, for_hours=hours, reserve_percent=5)
    plan = bare.model_copy(update={"capacity_wh": capacity / 3600, "idle_watts": idle})
    planner, reading, gained, second = Planner(plan, candidates(), 100.0, 0.0, seconds), 100.0, [], 0
    while left > 0.05 * capacity and second < 1.2 * seconds:
        if second % 10 == 0:
            percent = 100 * left / capacity
            jump = 8.0 if said == "jumps" and second % 3000 < 150 else 0.0
            if not (said == "stuck" and 0.5 < second / seconds < 0.6):
                reading = percent if said == "exact" else 5 * round(percent / 5) if said == "fives" else round(percent + jump)
            planner.reading(min(reading, 100.0), float(second))
        chosen = planner.next()
        planner.spent(chosen.key)
        left -= scale[second] * (chosen.energy_mj / 1e3 + idle)
        if second < seconds:
            gained.append(chosen.quality)
        second += 1
    assert second / seconds == pytest.approx(1.0, abs=0.02)
    best = sum(share.share * share.candidate.quality for share in best_mix(planner.hull, mean_mj))
    assert np.mean(gained) >= 0.98 * best


def test_shares_are_kept_over_few_inferences() -> None:
    plan = BatteryPlan(per_second=1, for_hours=1, capacity_wh=9.5 / 1e3)
    planner = Planner(plan, candidates(), 100.0, 0.0, 3600.0)  # 9.5 mJ: half of 7 and half of 12
    chosen = [planner.next().submodel for _ in range(10)]
    assert sorted(set(chosen)) == ["s2", "s3"]
    assert chosen.count("s3") == 5
    assert "50% s2 and 50% s3" in planner.reason(0.0)


@pytest.mark.parametrize("percent", [-1.0, 101.0, float("nan"), 250.0])
def test_a_reading_that_is_none_is_left_out(percent: float) -> None:
    plan = BatteryPlan(per_second=1, for_hours=1, capacity_wh=0.01)
    planner, other = (Planner(plan, candidates(), 80.0, 0.0, 3600.0) for _ in range(2))
    planner.reading(percent, 10.0)
    other.reading(None, 10.0)
    assert planner.mix == other.mix


def test_what_passes_moves_the_plan_little_and_what_stays_moves_it() -> None:
    """A camera doubles the drain for ten minutes, or from then on, of a plan for four hours."""
    plan = BatteryPlan(per_second=1, for_hours=4, capacity_wh=9.5 * 4 / 1e3)

    def spent(double: range) -> list[float]:
        planner, percent, found = Planner(plan, candidates(), 100.0, 0.0, 14400.0), 100.0, []
        for second in range(0, 7200, 10):
            percent -= 100 * 10 / 14400 * (2 if second in double else 1)
            planner.reading(round(percent, 1), float(second))
            for _ in range(10):
                planner.spent(planner.next().key)
            found.append(sum(share.share * share.candidate.energy_mj for share in planner.mix))
        return found

    steady, passing, lasting = (spent(range(3600, end, 10)) for end in (3600, 4200, 7200))
    assert min(passing[360:450]) > 0.75 * min(steady[360:450])
    assert lasting[-1] < 0.6 * steady[-1]


def controller_of() -> Controller:
    costs = {f"s{i}": flat(1.0 + i, a, e) for i, (e, a) in enumerate(zip(ENERGIES, ACCURACIES, strict=True))}
    profile = profile_of({name: cost.p50 for name, cost in costs.items()})
    return Controller(selector_of(costs), [profile], clock=lambda: NOON)


def test_a_budget_with_a_plan_gives_its_mix_and_says_why() -> None:
    controller = controller_of()
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=9.5 / 1e3))
    battery = Battery(percent=100, discharging=True)
    chosen = []
    for second in range(20):
        selection = controller.choose(budget, float(second), battery)
        controller.spent(selection)
        chosen.append(selection.submodel)
        assert selection.reason.startswith("battery plan for 1.0 h: 9.")
    assert set(chosen) == {"s2", "s3"}


def test_a_plan_and_a_deadline_are_both_kept() -> None:
    controller = controller_of()
    plan = BatteryPlan(per_second=1, for_hours=1, capacity_wh=34 / 1e3)
    selection = controller.choose(Budget(latency_ms=3.5, plan=plan), 0.0, Battery(percent=100, discharging=True))
    assert (selection.submodel, selection.feasible) == ("s2", True)  # the plan would allow s5, which takes 6 ms
    selection = controller.choose(Budget(latency_ms=0.5, plan=plan), 0.0, Battery(percent=100, discharging=True))
    assert (selection.submodel, selection.feasible) == ("s0", False)


def spends(controller: Controller, budget: Budget, now: float, percent: float, discharging: bool = True) -> str:
    selection = controller.choose(budget, now, Battery(percent=percent, discharging=discharging))
    controller.spent(selection)
    return selection.reason


def test_budgets_with_other_limits_share_a_plan_and_its_account() -> None:
    controller = controller_of()
    plan = BatteryPlan(per_second=1, for_hours=1, capacity_wh=9.5 / 1e3)
    strict = Budget(plan=plan, min_accuracy=0.9)  # the three largest
    for second in range(1800):
        spends(controller, strict if second % 2 else Budget(plan=plan), float(second), 100 - round(second / 36))
    assert controller.plans.latest is not None
    assert controller.plans.latest.reason(1800.0).startswith("battery plan for 0.5 h")
    chosen = controller.choose(strict, 1800.0, Battery(percent=50, discharging=True))
    assert (chosen.accuracy or 0) >= 0.9
    assert controller.plans.latest._spent_mj == pytest.approx(1800 * 9.5, rel=0.2)


def test_a_batch_is_as_many_inferences_and_a_candidate_that_is_gone_no_longer_mixed() -> None:
    planner, other = (Planner(BatteryPlan(per_second=1, for_hours=1), candidates(), 100.0, 0.0, 3600.0) for _ in range(2))
    planner.spent(("s3", "bench"), 8)
    for _ in range(8):
        other.spent(("s3", "bench"))
    assert planner._spent_mj == other._spent_mj == 8 * ENERGIES[3]
    planner.consider(candidates()[:2])
    assert {share.candidate.submodel for share in planner.mix} <= {"s0", "s1"}
    planner.spent(("s3", "bench"))
    assert planner._spent_mj == 9 * ENERGIES[3]


@pytest.mark.parametrize(("percent", "begins"), [(9, False), (60, True)])
def test_a_plan_that_is_over_begins_anew_when_it_was_charged_while_nothing_ran(percent: float, begins: bool) -> None:
    """A battery recovers a little by itself."""
    controller, budget = controller_of(), Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=9.5 / 1e3))
    spends(controller, budget, 0.0, 100)
    spends(controller, budget, 3500.0, 5)
    assert spends(controller, budget, 3601.0, 5).startswith("the battery plan's end has passed")
    reason = spends(controller, budget, 50_000.0, percent)
    assert reason.startswith("battery plan for 1.0 h" if begins else "the battery plan's end has passed")


def test_another_plan_is_not_told_that_the_one_before_is_over() -> None:
    controller, plan = controller_of(), BatteryPlan(per_second=1, for_hours=1, capacity_wh=9.5 / 1e3)
    spends(controller, Budget(plan=plan), 0.0, 100)
    assert "end has passed" in spends(controller, Budget(plan=plan), 3601.0, 5)
    other = Budget(plan=plan.model_copy(update={"per_second": 2.0}))
    assert "end has passed" not in spends(controller, other, 3602.0, 5, discharging=False)


def test_what_other_budgets_run_is_in_the_account() -> None:
    controller = controller_of()
    spends(controller, Budget(plan=BatteryPlan(per_second=1, for_hours=1), min_accuracy=0.9), 0.0, 100)
    assert controller.plans.latest is not None
    before = controller.plans.latest._spent_mj
    small = controller.choose(Budget(latency_ms=1.5), 1.0, Battery(percent=100, discharging=True))
    controller.spent(small, 10)
    assert small.submodel == "s0"
    assert controller.plans.latest._spent_mj - before == pytest.approx(10 * ENERGIES[0])


def test_a_plan_that_is_over_begins_anew_after_charging() -> None:
    controller, budget = controller_of(), Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=9.5 / 1e3))
    assert spends(controller, budget, 0.0, 100).startswith("battery plan for 1.0 h")
    assert spends(controller, budget, 3601.0, 5).startswith("the battery plan's end has passed")
    assert "plan" not in spends(controller, budget, 3700.0, 50, discharging=False)
    assert spends(controller, budget, 7200.0, 100).startswith("battery plan for 1.0 h")


@pytest.mark.parametrize("battery", [None, Battery(percent=50), Battery(percent=50, discharging=False)])
def test_a_plan_waits_while_nothing_is_discharging(battery: Battery | None) -> None:
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=0.001))
    assert controller_of().choose(budget, 0.0, battery).submodel == "s5"


def test_without_energies_time_stands_for_them_and_the_reason_says_so() -> None:
    costs = {f"s{i}": flat(1.0 + i, a) for i, a in enumerate(ACCURACIES)}
    controller = Controller(selector_of(costs), [profile_of({n: c.p50 for n, c in costs.items()})], clock=lambda: NOON)
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1))
    selection = controller.choose(budget, 0.0, Battery(percent=100, discharging=True))
    assert "relative units" in selection.reason


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that counts a suspend")
def test_a_plan_goes_on_while_the_device_is_suspended(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the battery is asked again after it, however little time the other clocks have counted."""
    suspended, percents, real = [0.0], iter([80, 40, 30]), time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + suspended[0] * (clock == time.CLOCK_BOOTTIME))
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=3))
    runtime = Runtime(bundle_path, battery=lambda: Battery(percent=next(percents), discharging=True), sensors=False)
    image = np.zeros((1, 1, 8, 8), np.float32)
    assert runtime.run(image, budget).selection.reason.startswith("battery plan for 3.0 h")
    suspended[0] = 2 * 3600.0
    assert runtime.run(image, budget).selection.reason.startswith("battery plan for 1.0 h")
    assert [record.battery_percent for record in runtime.history] == [80, 40]
    suspended[0] = 3 * 3600.0
    assert runtime.run(image, budget).selection.reason.startswith("the battery plan's end has passed")
    runtime.close()


@pytest.mark.parametrize("refusal", [OSError(22, "Invalid argument"), None], ids=["refused", "unknown"])
def test_a_system_without_such_a_clock_goes_by_its_monotonic_one(
    refusal: OSError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(clock: int) -> float:
        assert refusal is not None
        raise refusal

    monkeypatch.setattr(time, "clock_gettime", refuse)
    if refusal is None:
        monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(selector.choose.clock, "_BOOT", selector.choose.clock._boot_clock())
    before, found, after = time.monotonic(), selector.choose.clock.seconds(), time.monotonic()
    assert before <= found <= after


def test_a_runtime_keeps_the_account_of_a_plan(bundle_path: Path) -> None:
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1))
    runtime = Runtime(bundle_path, battery=lambda: Battery(percent=80, discharging=True))
    image = np.zeros((1, 1, 8, 8), np.float32)
    for _ in range(5):
        assert "relative units" in runtime.run(image, budget).selection.reason
    assert len(runtime.history) == 5
    assert {record.battery_percent for record in runtime.history} == {80.0}
    assert all(record.reason.startswith("battery plan for 1.0 h: ") for record in runtime.history)
    assert runtime.controller is not None
    assert runtime.controller.plans.latest is not None
    planner = runtime.controller.plans.latest
    of_single = planner._spent_mj
    assert of_single >= 5 * min(planner._costs.values())  # the first run of each session too
    runtime.run(image.repeat(7, axis=0), budget)
    assert planner._spent_mj - of_single >= 7 * min(planner._costs.values())
    runtime.close()
