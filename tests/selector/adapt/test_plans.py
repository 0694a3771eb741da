"""Several battery plans on one battery: in turn, one in another's place, more than are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from selector import Battery, BatteryPlan, Budget
from selector.adapt.controller import Controller
from selector.adapt.plans import KEPT
from tests.helpers.costs import flat, profile_of, selector_of
from tests.helpers.plans import ACCURACIES, ENERGIES, NOON

FULL = 10.0 * 8 * 3600
"""mJ: eight hours at 10 mJ in every second."""


def controller_of() -> Controller:
    costs = {f"s{i}": flat(1.0 + i, a, e) for i, (e, a) in enumerate(zip(ENERGIES, ACCURACIES, strict=True))}
    profile = profile_of({name: cost.p50 for name, cost in costs.items()})
    return Controller(selector_of(costs), [profile], clock=lambda: NOON)


def run(controller: Controller, asked: Callable[[int], BatteryPlan | None], hours: float) -> tuple[list[float], list[str]]:
    """An inference in every second by the plan that is asked for then. What is left (a share) at the end of every hour, or
    until it is empty; and the reasons."""
    left, found, reasons = FULL, [], []
    for second in range(round(hours * 3600)):
        battery = Battery(percent=max(0, round(100 * left / FULL)), discharging=True)
        selection = controller.choose(Budget(plan=asked(second)), float(second), battery)
        controller.spent(selection)
        left -= ENERGIES[int(selection.submodel[1:])]
        reasons.append(selection.reason)
        if (second + 1) % 3600 == 0:
            found.append(left / FULL)
        if left <= 0:
            break
    return found, reasons


@pytest.mark.parametrize("known", [True, False], ids=["joules", "relative"])
def test_two_plans_in_turn_are_both_kept(known: bool) -> None:
    capacity_wh = FULL / 3.6e6 if known else None
    short, long = (BatteryPlan(per_hour=1800, for_hours=hours, capacity_wh=capacity_wh) for hours in (4, 8))
    left, reasons = run(controller_of(), lambda second: long if second % 2 or second >= 4 * 3600 else short, 8.2)
    assert len(left) >= 7
    assert left[3] > 0.1
    assert left[-1] < 0.1
    assert "end has passed" not in "".join(reasons[: 4 * 3600])


def test_a_plan_ends_while_another_is_asked_for_between() -> None:
    controller = controller_of()
    one, two = (BatteryPlan(per_hour=1800, for_hours=hours, capacity_wh=FULL / 3.6e6) for hours in (1, 2))
    _, reasons = run(controller, lambda second: two if second % 2 else one, 1.5)
    assert reasons[3598].startswith("battery plan for 0.0 h")
    assert reasons[3600].startswith("the battery plan's end has passed")
    assert reasons[5001].startswith("battery plan for 0.6 h")


@pytest.mark.parametrize(("hours", "changed"), [(8, 4), (4, 7)])
def test_a_plan_that_is_changed_goes_by_the_new_one(hours: float, changed: float) -> None:
    """After an hour, to so many from then on."""
    before, after = (BatteryPlan(per_second=1, for_hours=h, capacity_wh=FULL / 3.6e6) for h in (hours, changed))
    _, reasons = run(controller_of(), lambda second: after if second >= 3600 else before, changed + 1.5)
    assert len(reasons) / 3600 == pytest.approx(changed + 1, abs=0.05)


def test_plans_without_end_take_no_memory_without_end() -> None:
    controller = controller_of()
    run(controller, lambda second: BatteryPlan(per_second=1, for_hours=1 + second % 100), 0.1)
    assert len(controller.plans._running) == KEPT


def test_on_the_mains_every_plan_learns_of_it() -> None:
    controller = controller_of()
    one, two = (BatteryPlan(per_second=1, for_hours=hours, capacity_wh=FULL / 3.6e6) for hours in (8, 9))
    for place, plan in enumerate((one, two)):
        controller.choose(Budget(plan=plan), float(place), Battery(percent=20, discharging=True))
    controller.choose(Budget(plan=one), 10.0, Battery(percent=60))
    reason = controller.choose(Budget(plan=two), 20.0, Battery(percent=90, discharging=True)).reason
    assert reason.startswith(f"battery plan for 9.0 h: {0.9 * FULL / 9 / 3600:.3g} mJ")
