"""A plan's end is what its user's clock says: while that is set, while the device travels, and where summer time begins."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from selector.adapt.controller import Controller
from selector.adapt.plan_end import AGAIN_SECONDS, PlanEnd
from selector.choose.battery import Battery
from selector.choose.budget import BatteryPlan, Budget, BudgetError, make_budget, parse_plan
from selector.choose.clock import LOCAL, wall_clock
from tests.helpers.costs import flat, profile_of, selector_of
from tests.helpers.plans import NOON

BERLIN, LONDON = ZoneInfo("Europe/Berlin"), ZoneInfo("Europe/London")
HOUR = 3600.0


def plan(**said: Any) -> BatteryPlan:
    return BatteryPlan.model_validate({"per_second": 1, **said})


@pytest.mark.parametrize("until", [1800, 18, 18.0, "1800", "18", "18.00", "2026-11-26", "18h", "2026-11-26T18:00", "soon:"])
def test_what_is_no_time_is_refused_with_what_is_allowed(until: Any) -> None:
    with pytest.raises(ValidationError, match=r"until = '.+': allowed are a time of day such as 18:00, .+ and a date with"):
        plan(until=until)
    if isinstance(until, str):
        with pytest.raises(BudgetError, match=r"until = '.+': allowed are a time of day such as 18:00"):
            make_budget(plan=parse_plan(["per_hour=600", f"until={until}"]))


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        (datetime(2026, 3, 28, 20, tzinfo=BERLIN), 21.0),  # the clocks are set forward in the night
        (datetime(2026, 10, 24, 20, tzinfo=BERLIN), 23.0),  # and back
        (datetime(2026, 3, 29, 1, tzinfo=BERLIN), 16.0),
    ],
)
def test_summer_time_inside_a_plan(now: datetime, hours: float) -> None:
    assert plan(until="18:00").seconds(now) == hours * HOUR


@pytest.fixture
def berlin() -> Iterator[None]:
    """As the device's own time zone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_the_devices_own_zone_knows_of_summer_time_and_moves() -> None:
    assert plan(until="18:00").seconds(datetime(2026, 3, 28, 20, tzinfo=LOCAL)) == 21 * HOUR
    assert wall_clock().utcoffset() == datetime.now(BERLIN).utcoffset()
    assert abs((wall_clock() - datetime.now(UTC)).total_seconds()) < 60
    os.environ["TZ"] = "Asia/Tokyo"
    assert wall_clock().utcoffset() == timedelta(hours=9)


@pytest.mark.parametrize(
    ("said", "wall", "then", "left"),
    [
        ({"for_hours": 3}, NOON, NOON + timedelta(hours=5), 2 * HOUR),  # whatever the clock says
        ({"until": "18:00"}, NOON, NOON + timedelta(hours=1), 5 * HOUR),  # nothing happened
        ({"until": "18:00"}, NOON, NOON + timedelta(hours=4), 2 * HOUR),  # the clock was three hours slow
        ({"until": "18:00"}, NOON, NOON + timedelta(hours=6, minutes=30), -HOUR / 2),  # so slow that it is over
        ({"until": "18:00"}, NOON, NOON - timedelta(hours=2), 8 * HOUR),
        ({"until": "18:00"}, NOON, NOON - timedelta(days=3), 6 * HOUR),  # no time of day is farther off than a day
        ({"until": "18:00"}, datetime(1970, 1, 1, tzinfo=UTC), NOON, 6 * HOUR),  # there was no clock
        ({"until": "2026-11-25T18:00+00:00"}, datetime(1970, 1, 1, tzinfo=UTC), NOON, 6 * HOUR),
        ({"until": "18:00"}, NOON.astimezone(BERLIN), (NOON + timedelta(hours=1)).astimezone(LONDON), 5 * HOUR),  # travelled
        ({"until": "18:00+01:00"}, NOON.astimezone(BERLIN), (NOON + timedelta(hours=1)).astimezone(LONDON), 4 * HOUR),
    ],
)
def test_the_end_an_hour_later(said: dict[str, Any], wall: datetime, then: datetime, left: float) -> None:
    end = PlanEnd(plan(**said), wall, now=500.0)
    now = 500.0 + HOUR
    assert end.at(then, now) - now == pytest.approx(left)
    assert end.due(now + AGAIN_SECONDS) == ("until" in said)


def test_a_run_goes_by_the_clock_as_it_is_set() -> None:
    """Through the controller: the plan goes on, with what is left."""
    wall = NOON
    selector = selector_of({"small": flat(1.0, 0.8, 2.0), "large": flat(2.0, 0.9, 8.0)})
    controller = Controller(selector, [profile_of({"small": 1.0, "large": 2.0})], clock=lambda: wall)
    budget, battery = Budget(plan=plan(until="18:00", capacity_wh=50)), Battery(percent=80, discharging=True)
    assert "battery plan for 6.0 h" in controller.choose(budget, 0.0, battery).reason
    wall = NOON + timedelta(hours=4)
    assert "battery plan for 6.0 h" in controller.choose(budget, 5.0, battery).reason  # not looked at for every run
    assert "battery plan for 2.0 h" in controller.choose(budget, 11.0, battery).reason
    wall = NOON + timedelta(hours=6, minutes=1)
    assert "the battery plan's end has passed" in controller.choose(budget, 30.0, battery).reason
