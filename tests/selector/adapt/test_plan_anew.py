"""What a plan guesses at its first moment is guessed again when the battery is charged or the clock is set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from selector import Battery, BatteryPlan, Budget
from selector.adapt.controller import Controller
from tests.helpers.costs import flat, profile_of, selector_of
from tests.helpers.plans import ACCURACIES, ENERGIES, NOON

HOURS = 8
CAPACITY_MJ = 10.0 * HOURS * 3600
"""Of a battery that lasts so long at 10 mJ an inference, one in a second."""
Clock = Callable[[float], datetime]


class Day:
    """A plan on a simulated battery that says whole per cent, until it is empty or an hour too late."""

    def __init__(self, plan: BatteryPlan, clock: Clock, percent: float, *, charged_at: float | None = None, idle_mj: float = 0):
        costs = {f"s{i}": flat(1.0 + i, a, e) for i, (e, a) in enumerate(zip(ENERGIES, ACCURACIES, strict=True))}
        profile = profile_of({name: cost.p50 for name, cost in costs.items()})
        self.second, self.left, self.used = 0, CAPACITY_MJ * percent / 100, Counter[str]()
        controller = Controller(selector_of(costs), [profile], clock=lambda: clock(float(self.second)))
        budget = Budget(plan=plan)
        while self.left > CAPACITY_MJ * plan.reserve_percent / 100 or self.second < 3600:
            charging = charged_at is not None and charged_at <= self.second < charged_at + 600
            self.left = min(CAPACITY_MJ, self.left + CAPACITY_MJ / 60) if charging else self.left
            battery = Battery(percent=max(0, round(100 * self.left / CAPACITY_MJ)), discharging=not charging)
            selection = controller.choose(budget, float(self.second), battery)
            if not charging:
                controller.spent(selection, 10)
                self.left -= 10 * ENERGIES[int(selection.submodel[1:])] + 10 * idle_mj
                self.used[selection.submodel] += 1
            self.second += 10
            if self.second > (HOURS + 1) * 3600:
                break

    @property
    def hours(self) -> float:
        return self.second / 3600


def right(now: float) -> datetime:
    return NOON + timedelta(seconds=now)


def wrong_for(seconds: float, begun: datetime) -> Clock:
    return lambda now: (begun if now < seconds else NOON) + timedelta(seconds=now)


@pytest.mark.parametrize("known", [True, False], ids=["joules", "relative"])
@pytest.mark.parametrize("idle_mj", [0.0, 4.0])
@pytest.mark.parametrize(
    "clock",
    [
        right,
        wrong_for(60, datetime(1970, 1, 1, tzinfo=UTC)),
        wrong_for(60, NOON - timedelta(days=2)),
        wrong_for(60, NOON + timedelta(hours=9)),
        wrong_for(3600, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
    ids=["right", "1970", "two days", "past", "1970 for an hour"],
)
def test_a_plan_is_kept_when_the_clock_is_set_after_it_began(clock: Clock, idle_mj: float, known: bool) -> None:
    capacity_wh = CAPACITY_MJ / 3.6e6 if known else None
    plan = BatteryPlan(per_second=1, until=NOON + timedelta(hours=HOURS), capacity_wh=capacity_wh)
    assert Day(plan, clock, 100, idle_mj=idle_mj).hours == pytest.approx(HOURS, abs=0.1)


@pytest.mark.parametrize("known", [True, False], ids=["joules", "relative"])
@pytest.mark.parametrize("percent", [9, 10, 11, 15, 50])
def test_a_plan_that_began_near_its_reserve_is_kept_once_the_battery_is_charged(percent: float, known: bool) -> None:
    capacity_wh = CAPACITY_MJ / 3.6e6 if known else None
    plan = BatteryPlan(per_second=1, for_hours=HOURS, reserve_percent=10, capacity_wh=capacity_wh)
    day = Day(plan, right, percent, charged_at=300)
    assert day.hours == pytest.approx(HOURS, abs=0.1)
    assert day.used["s5"] < 0.02 * day.used.total()  # no debt that is paid later
