"""A day of operation on a simulated clock: load that comes and goes, idle gaps, a battery plan, readings that lie. Nothing is
raised, the choice stays sensible, and memory does not grow."""

from __future__ import annotations

import gc
import tracemalloc
from datetime import UTC, datetime, timedelta
from math import inf, nan

import numpy as np

from selector import Battery, BatteryPlan, Budget, Selector
from selector.adapt.controller import Controller
from selector.adapt.memory import MemoryGuard
from selector.adapt.sensors import Sensor, Sensors
from tests.helpers.costs import ACCURACIES, MEDIANS, profile_of

HOURS = 24
EVERY_SECONDS = 2.0
RUNS = round(HOURS * 3600 / EVERY_SECONDS)
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


class Day:
    """Half of the runs have a deadline, half go by a battery plan; every hour the load is another, every tenth minute is
    idle, and the battery and the other sensors sometimes say what cannot be."""

    def __init__(self) -> None:
        profile = profile_of(MEDIANS)
        self.now = 0.0
        clock = lambda: BEGUN + timedelta(seconds=self.now)  # noqa: E731
        self.controller = Controller(Selector(profile, ACCURACIES), [profile], clock=clock)
        plan = BatteryPlan(per_second=0.5 / EVERY_SECONDS, for_hours=HOURS, reserve_percent=10)
        self.budgets = [Budget(latency_ms=0.6, percentile=99), Budget(latency_ms=5.0, plan=plan)]
        self.random = np.random.default_rng(0)
        self.reading: float | None = 1000.0
        self.sensors = Sensors([Sensor("memory_available", lambda: self.reading, every_seconds=2.0, least=0.0)])
        self.guard = MemoryGuard(400.0, 100.0)
        self.met = self.limited = 0

    def run(self, step: int) -> None:
        self.now += EVERY_SECONDS
        minute = self.now / 60
        if int(minute) % 10 == 9:
            return
        slow = (1.0, 2.0, 1.3, 3.0)[int(minute / 60) % 4]
        percent = 100 - 90 * self.now / (HOURS * 3600)
        battery = Battery(percent=percent, discharging=True) if step % 100 != 50 else None  # sometimes it is not there
        budget = self.budgets[step % 2]
        selection = self.controller.choose(budget, self.now, battery)
        latency = MEDIANS[selection.submodel] * slow * float(np.exp(self.random.normal(0, 0.03)))
        self.met += selection.feasible and latency <= (budget.latency_ms or inf)
        self.limited += 1
        if step % 500 == 7:
            latency = (nan, -1.0, 0.0, inf)[step // 500 % 4]
        self.controller.spent(selection)
        self.controller.observe(selection, latency, self.now)
        self.reading = (1000.0, nan, -3.0, 20.0, None, 1e12)[step // 40 % 6]
        self.sensors.read_due(self.now)
        self.guard.update(200.0, self.sensors.value("memory_available", self.now), None, self.now)


def test_a_day_of_operation_takes_no_more_memory_at_the_end_than_after_the_first_hour() -> None:
    day = Day()
    warm_up = RUNS // HOURS
    for step in range(warm_up):
        day.run(step)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for step in range(warm_up, RUNS):
        day.run(step)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What is kept of late runs has a fixed length, but is made anew since tracing began: a few kB.
    assert after - before < 50_000
    assert day.met >= 0.98 * day.limited
