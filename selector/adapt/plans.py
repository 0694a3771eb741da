"""`Plans`: the battery plans of a controller's budgets, all on one battery. Pure: time and readings come in as arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from selector.adapt.plan import Planner
from selector.adapt.plan_end import PlanEnd
from selector.choose.battery import Battery
from selector.choose.budget import BatteryPlan, Budget
from selector.choose.candidates import Key
from selector.choose.selector import Selector

RECHARGED_PERCENT = 5.0
"""More charge than a battery recovers by itself: with so much more than at its end a plan begins anew."""
KEPT = 8
"""Plans, the latest that were asked for."""
SILENT_SECONDS, SILENT_INFERENCES = 60.0, 10.0
"""Who has not asked for a plan for so long, and for as long as so many of its inferences take, follows it no longer."""


@dataclass
class _Running:
    """A plan that has begun."""

    planner: Planner
    end: PlanEnd
    mixes: object  # the selector and the limits whose candidates it mixes
    asked_at: float

    def followed(self, now: float) -> bool:
        silent = max(SILENT_SECONDS, SILENT_INFERENCES / self.planner.plan.rate)
        waits = self.planner.interrupted or self.planner.over(now)
        return 0 <= now - self.asked_at < silent and not waits


class Plans:
    """Each keeps its account of all that is spent. Of several that are followed at the same time none takes more for an
    inference than any of them allows, so that the battery lasts until the last one's end; one that is put in another's place
    is bound by it for a short while only."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._running: dict[BatteryPlan, _Running] = {}  # the one that was asked for latest is the last

    @property
    def latest(self) -> Planner | None:
        """Of the plan that was asked for latest."""
        return next((one.planner for one in reversed(self._running.values())), None)

    def over(self, plan: BatteryPlan, now: float) -> bool:
        """It has begun, and its end has passed."""
        return plan in self._running and self._running[plan].planner.over(now)

    def spent(self, key: Key, inferences: float, share: float) -> None:
        """See `Planner.spent`."""
        for one in self._running.values():
            one.planner.spent(key, inferences, share)

    def asked(self, budget: Budget, now: float, battery: Battery | None, selector: Selector) -> Planner | None:
        """The planner of the budget's plan, which has seen the battery. None where there is nothing to plan: on the mains,
        without a battery when the plan begins, or after its end."""
        plan, mixes = budget.plan, (selector, budget.memory_mb, budget.floor)
        assert plan is not None
        running = self._running.pop(plan, None)
        if running is None and battery is None:
            return None
        if running is not None and running.end.due(now):
            running.planner.end(running.end.at(self._clock(), now), now)
        if battery is not None and running is not None and running.planner.over(now):
            if battery.discharging and battery.percent < running.planner.said + RECHARGED_PERCENT:
                self._running[plan] = running
                return None
            running = None  # it was charged, or is: begins anew with the next discharge
        if running is not None:
            running.asked_at = now
            self._running[plan] = running
        if battery is not None and not battery.discharging:
            for one in self._running.values():
                one.planner.interrupt()
            return None
        if running is None:
            assert battery is not None
            lasting, wall = selector.sustained, self._clock()  # a plan is for hours
            candidates = lasting.candidates(budget.memory_mb, budget.floor)
            planner = Planner(plan, candidates, battery.percent, now, plan.seconds(wall), others=lasting.measured)
            running = self._running[plan] = _Running(planner, PlanEnd(plan, wall, now), mixes, now)
            for oldest in list(self._running)[:-KEPT]:
                del self._running[oldest]
        if running.planner.over(now):
            return None
        if mixes != running.mixes:
            running.planner.consider(selector.sustained.candidates(budget.memory_mb, budget.floor))
            running.mixes = mixes
        percent = None if battery is None else battery.percent  # one that has gone: the account goes on
        beside = [one.planner for one in self._running.values() if one is not running and one.followed(now)]
        running.planner.reading(percent, now, beside)
        return running.planner
