"""The harness that gives the battery planner a cell of PyBaMM: what it draws, and how it tells that a plan missed its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.adapt.battery_world import TICK, TICKS
from benchmarks.ship import cell, third_party

LEVEL = np.ones(TICKS)


class Ideal:
    """A cell that gives what its data sheet says, at any load, times `holds`."""

    holds = 1.0

    def __init__(self, parameters: str, joules: float, start: float) -> None:
        self._joules, self.percent, self.given, self.empty = joules * self.holds, start, 0.0, False

    def draw(self, watts: float, seconds: float) -> None:
        self.given += watts * seconds
        self.percent -= 100 * watts * seconds / self._joules


def case(place: int = 0, **changes: Any) -> dict[str, Any]:
    """All costs 30 % less than told, or more in place 1."""
    return {**list(third_party.cases({"level": LEVEL}))[place], **changes}


@pytest.mark.parametrize("holds", [1.0, 0.8])
def test_a_plan_that_is_kept_has_no_error_and_one_that_is_never_corrected_has(
    monkeypatch: pytest.MonkeyPatch, holds: float
) -> None:
    monkeypatch.setattr(cell, "Cell", Ideal)
    monkeypatch.setattr(Ideal, "holds", holds)
    cheap, dear = (cell.run(case(place)) for place in (0, 1))
    assert max(abs(cheap.signed_error), abs(dear.signed_error)) < 0.03
    cheap, dear = (cell.run(case(place, policy="once")) for place in (0, 1))
    assert cheap.signed_error > dear.signed_error + 0.2
    assert dear.signed_error < -0.1
    assert dear.percents[0] == case(1)["start"]


def test_an_empty_cell_ends_the_case_early(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(Ideal):
        def draw(self, watts: float, seconds: float) -> None:
            super().draw(watts, seconds)
            self.empty = self.percent < 50

    monkeypatch.setattr(cell, "Cell", Dying)
    assert cell.run(case()).signed_error < -0.3


def test_a_hot_device_costs_more_in_the_middle_and_as_before_in_the_end() -> None:
    costs = third_party.heat(0)
    assert costs.shape == (TICKS,)
    assert costs[0] == 1
    assert costs.max() > 1.5
    assert TICKS // 3 < costs.argmax() < 2 * TICKS // 3
    assert costs[-1] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "text",
    [
        "# a cycle\ncurrent [A],time [s]\n1,0\n3,10\n-5,20\n1,40\n",
        "# a cycle\n# Time [s], Current [A]\n0,1\n10,3\n20,-5\n40,1\n",
    ],
)
def test_a_drive_cycle_becomes_what_a_device_draws(text: str) -> None:
    load = third_party._in_ticks(text)
    assert load.shape == (TICKS,)
    assert load.mean() == pytest.approx(1)
    assert load.min() >= 0
    np.testing.assert_allclose(load[: round(40 / TICK)], load[round(40 / TICK) : 2 * round(40 / TICK)])  # it repeats
    assert load[0] > load[1] > load[2] == 0  # what brakes give back is not drawn
