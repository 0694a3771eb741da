"""`Planner`: the battery lasts until a given moment, at the best accuracy that this leaves.

What a plan leaves per inference, e, is spent best by mixing two sub-models: the linear program "maximize the mean accuracy
subject to a mean energy of at most e" has an optimal vertex with two non-zero shares, neighbours on the concave frontier of
accuracy over energy (Dantzig 1963, chapter 7). Reality differs from the profile and from the battery's own percentage, so
that the plan is made again with every reading.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

from selector.budget import BatteryPlan
from selector.selector import Candidate, Key


class Share(NamedTuple):
    """Of the inferences, what part this sub-model gets."""

    candidate: Candidate
    share: float


def concave_frontier(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that some linear price of energy makes the best choice, in ascending order of energy."""
    hull: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.energy_mj, -c.accuracy)):
        if hull and candidate.accuracy <= hull[-1].accuracy:
            continue
        while len(hull) > 1 and _slope(hull[-2], candidate) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(candidate)
    return hull


def best_mix(hull: Sequence[Candidate], energy_mj: float) -> list[Share]:
    """The optimum of the linear program; the least of all where even that exceeds the energy."""
    place = bisect_right([c.energy_mj for c in hull], energy_mj)
    if place == 0:
        return [Share(hull[0], 1.0)]
    if place == len(hull):
        return [Share(hull[-1], 1.0)]
    low, high = hull[place - 1], hull[place]
    share = (energy_mj - low.energy_mj) / (high.energy_mj - low.energy_mj)
    return [Share(low, 1.0 - share), Share(high, share)]


class Planner:
    """Turns a plan into a sub-model for every inference. Time is in seconds of a clock that only goes forward.

    What the battery really loses is modelled as `watts` × time + `scale` × energy by the profile; both are estimated from
    the readings (recursive least squares with the plan's idle power and 1 as a prior).
    """

    def __init__(self, plan: BatteryPlan, candidates: Iterable[Candidate], percent: float, now: float, seconds: float) -> None:
        known = list(candidates)
        measured = all(candidate.energy_mj < inf for candidate in known)
        if not measured:  # the time that one takes stands for its energy
            known = [candidate._replace(energy_mj=candidate.latency_ms) for candidate in known]
        self.plan, self.hull = plan, concave_frontier(known)
        self._costs = {candidate.key: candidate.energy_mj for candidate in known}
        self.ends_at = now + seconds
        self.relative = plan.capacity_wh is None or not measured
        # Without a capacity a full battery is one unit, of which the middle of the frontier is taken to use its even share.
        self._joules_per_percent = (plan.capacity_wh or 0.0) * 36.0  # a hundredth of 3600 per watt hour
        if self.relative:
            middle = self.hull[len(self.hull) // 2].energy_mj / 1e3
            self._joules_per_percent = max(1e-9, middle * plan.rate * seconds / max(percent - plan.reserve_percent, 1e-9))
        self._percent, self._read_at = percent, now
        self._changed = (now, 0.0)  # since when it has been this, and what had been spent by then
        self._began = now
        self._first = (percent, now)
        self._spent_mj = self._spent_before = 0.0
        self._model = _Drain(0.0 if self.relative else plan.idle_watts, self.relative)
        self._debt = 0.0
        self._mix = self._replan(now)
        self.latest = self._mix[0].candidate

    def reading(self, percent: float, now: float) -> None:
        """What the battery says now. A rise (charging, a recovered voltage) begins the account anew."""
        if not 0 <= percent <= 100 or now < self._read_at:
            return
        if percent > self._first[0] + 0.5:
            self._first, self._spent_before = (percent, now), self._spent_mj
        lost = (self._first[0] - percent) * self._joules_per_percent
        if percent != self._percent:
            self._changed = (now, self._spent_mj)
        self._percent, self._read_at = percent, now
        elapsed, spent = now - self._first[1], (self._spent_mj - self._spent_before) / 1e3
        if self._first[0] - percent >= 1.0 and elapsed > 0:  # a percentage is rounded: less than one says nothing
            self._model.learn(elapsed, spent, lost)
            self._first, self._spent_before = (percent, now), self._spent_mj
        self._mix = self._replan(now)

    def next(self) -> Candidate:
        """The sub-model for the next inference: shares are kept by carrying over what was left out."""
        if len(self._mix) == 1:
            self.latest = self._mix[0].candidate
            return self.latest
        low, high = self._mix
        self._debt += high.share
        self.latest = low.candidate
        if self._debt >= 0.5:
            self._debt -= 1.0
            self.latest = high.candidate
        return self.latest

    def spent(self, key: Key) -> None:
        """An inference of this sub-model was made."""
        self._spent_mj += self._costs.get(key, 0.0)

    def costing_at_most(self, candidate: Candidate) -> list[Key]:
        return [key for key, cost in self._costs.items() if cost <= candidate.energy_mj]

    @property
    def mix(self) -> Sequence[Share]:
        return self._mix

    def energy_left_mj(self, now: float) -> float:
        """Per inference, by the profile's measure."""
        seconds = max(self.ends_at - now, 1e-9)
        joules = (self._percent - self._since_change(now) - self.plan.reserve_percent) * self._joules_per_percent
        inferences = max(self.plan.rate * seconds, 1.0)
        return 1e3 * (joules - self._model.watts * seconds) / (self._model.scale * inferences)

    def reason(self, now: float) -> str:
        hours = max(0.0, self.ends_at - now) / 3600
        unit = " in relative units" if self.relative else ""
        parts = " and ".join(f"{share.share:.0%} {share.candidate.submodel}" for share in self._mix)
        return f"battery plan for {hours:.1f} h: {self.energy_left_mj(now):.3g} mJ per inference{unit}, {parts}"

    def _since_change(self, now: float) -> float:
        """Per cent that have gone since the reading changed, by the model: most batteries tell whole ones, rounded."""
        since, spent = self._changed
        joules = self._model.watts * (now - since) + self._model.scale * (self._spent_mj - spent) / 1e3
        return min(joules / self._joules_per_percent, 1.0) - (0.5 if since > self._began else 0.0)

    def _replan(self, now: float) -> list[Share]:
        return best_mix(self.hull, self.energy_left_mj(now))


class _Drain:
    """Least squares of lost = watts × seconds + scale × spent, with a prior worth a few readings."""

    def __init__(self, watts: float, relative: bool) -> None:
        self.watts, self.scale = watts, 1.0
        self._prior_watts = watts
        self._weight = 0.2 if relative else 2.0
        self._sums = [0.0] * 5

    def learn(self, seconds: float, spent: float, lost: float) -> None:
        if seconds <= 0 or spent <= 0:
            return
        # Powers instead of energies: lost / s = watts + scale × (spent / s)
        x, y = spent / seconds, lost / seconds
        sums = self._sums = [0.97 * s for s in self._sums]
        sums[0] += 1.0
        sums[1] += x
        sums[2] += x * x
        sums[3] += y
        sums[4] += x * y
        # The prior holds both parameters, in units of the typical power, so that one direction of the data does not decide.
        weight, typical = self._weight, max(sums[1] / sums[0], 1e-12)
        a11, a12, a22 = sums[0] + weight, sums[1], sums[2] + weight * typical * typical
        b1, b2 = sums[3] + weight * self._prior_watts, sums[4] + weight * typical * typical
        determinant = a11 * a22 - a12 * a12
        if determinant > 0:
            self.watts = max(0.0, (b1 * a22 - b2 * a12) / determinant)
            self.scale = max(0.05, (a11 * b2 - a12 * b1) / determinant)


def _slope(a: Candidate, b: Candidate) -> float:
    gap = b.energy_mj - a.energy_mj
    return (b.accuracy - a.accuracy) / gap if gap > 0 else float("inf")
