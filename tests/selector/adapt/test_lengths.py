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


def quality_at_the_end(controller: Controller, length: int | None, mean_mj: float = 20.0) -> float:
    """Of a plan that leaves so much for an inference, over its first half; the battery says nothing new."""
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=mean_mj / 1e3), length=length)
    battery = Battery(percent=100, discharging=True)
    found = []
    for second in range(1800):
        selection = controller.choose(budget, float(second), battery)
        controller.spent(selection, length=length)
        found.append(selection.quality or 0.0)
    return sum(found[-200:]) / 200


def test_what_short_inputs_leave_of_a_plan_is_spent_on_larger_sub_models() -> None:
    long, short, scarce = (controller_of() for _ in range(3))
    share = taking(1.0, 16) / taking(1.0, 256)
    as_planned = quality_at_the_end(long, None)
    assert as_planned == pytest.approx(0.74, abs=0.01)  # s1, of 20 mJ
    assert quality_at_the_end(short, 16) == pytest.approx(0.9)  # s5, of 60 mJ at the longest, 4 mJ here
    assert quality_at_the_end(scarce, 16, 20.0 * share) == pytest.approx(as_planned, abs=0.01)
    spent = [controller.plans.latest._spent_mj for controller in (long, short, scarce) if controller.plans.latest]
    assert spent[1] < 3.1 * share * spent[0]
    assert spent[2] == pytest.approx(share * spent[0], rel=0.02)


@pytest.mark.parametrize("lengths", [(16, 16), (16, 256), (256, 16)], ids=["short", "longer", "shorter"])
@pytest.mark.parametrize("known", [True, False], ids=["joules", "relative"])
def test_a_battery_is_used_up_by_the_end_at_the_best_quality_whatever_the_lengths(
    known: bool, lengths: tuple[int, int]
) -> None:
    """Of a plan for eight hours, at the best that 25 mJ for inputs of the longest affords; lengths change in the middle."""
    controller, seconds = controller_of(), 8 * 3600
    shares = [taking(1.0, length) / taking(1.0, 256) for length in lengths]
    left = capacity = 25.0 * sum(shares) / 2 * seconds
    plan = BatteryPlan(per_second=1, for_hours=8, capacity_wh=capacity / 3.6e6 if known else None)
    qualities = []
    for second in range(0, seconds, 10):
        late = 2 * second >= seconds
        battery = Battery(percent=max(0, round(100 * left / capacity)), discharging=True)
        selection = controller.choose(Budget(plan=plan, length=lengths[late]), float(second), battery)
        controller.spent(selection, 10, lengths[late])
        left -= 10 * shares[late] * 10 * WEIGHTS[selection.submodel]
        assert left > -0.01 * capacity
        qualities.append(selection.quality or 0.0)
    if lengths == (16, 16):
        assert left < 0.02 * capacity
        assert sum(qualities) / len(qualities) == pytest.approx(0.76, abs=0.005)  # half s1, half s2
