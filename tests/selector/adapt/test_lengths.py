"""A battery plan over inputs of several lengths."""

from __future__ import annotations

import pytest

from selector import Battery, Budget, Selector
from selector.adapt.controller import Controller
from selector.choose.budget import BatteryPlan
from tests.helpers.lengths import profile_of, taking
from tests.helpers.plans import NOON

WEIGHTS = {f"s{i}": 1.0 + i for i in range(6)}  # 10 mJ, 20 mJ, … at the longest


def controller_of() -> Controller:
    profile = profile_of(WEIGHTS)
    selector = Selector(profile, {name: 0.7 + 0.04 * place for place, name in enumerate(WEIGHTS)})
    return Controller(selector, [profile], clock=lambda: NOON)


def quality_at_the_end(controller: Controller, length: int | None) -> float:
    """Of a plan that leaves 20 mJ an inference, over its first half; the battery says nothing new."""
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=20 / 1e3), length=length)
    battery = Battery(percent=100, discharging=True)
    found = []
    for second in range(1800):
        selection = controller.choose(budget, float(second), battery)
        controller.spent(selection, length=length)
        found.append(selection.quality or 0.0)
    return sum(found[-200:]) / 200


def test_what_short_inputs_leave_of_a_plan_is_spent_on_larger_sub_models() -> None:
    long, short = controller_of(), controller_of()
    as_planned = quality_at_the_end(long, None)
    assert as_planned == pytest.approx(0.74, abs=0.01)  # s1, of 20 mJ
    assert quality_at_the_end(short, 16) > as_planned + 0.02
    assert short._planner is not None
    assert long._planner is not None
    assert short._planner._spent_mj < 2.5 * taking(1.0, 16) / taking(1.0, 256) * long._planner._spent_mj
