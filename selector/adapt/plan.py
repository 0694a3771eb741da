"""`Planner`: the battery lasts until a given moment, at the best accuracy that this leaves.

What a plan leaves per inference, e, is spent best by mixing two sub-models: the linear program "maximize the mean accuracy
subject to a mean energy of at most e" has an optimal vertex with two non-zero shares, neighbours on the concave frontier of
accuracy over energy (Dantzig 1963, chapter 7). Reality differs from the profile and from the battery's own percentage, so
that the plan is made again with every reading.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import exp, inf
from typing import NamedTuple

from selector.adapt.charge import Charge
from selector.choose.budget import BatteryPlan
from selector.choose.candidates import Candidate, Key

# Chosen on other seeds and errors than those reported by benchmarks/adapt/battery.py.
CALM_SECONDS = 900.0
"""Time constant with which the energy per inference follows what is left: the frontier is concave, so that every detour costs
accuracy."""
CALM_LEFT, CALM_GONE = 0.06, 0.2
"""At most this share of what is left of the plan, as it must end in time, and of what is over, as little is known at first."""
LEARNT_PERCENT = 3.0
"""Before so much is lost nothing is known of how the battery goes."""
MOVED = 0.1
"""Of the time left: an end that moves by more makes another plan of it."""
SHARES = 1000.0
"""Inferences whose length counts, in the mean, for those to come."""


class Share(NamedTuple):
    """Of the inferences, what part this sub-model gets."""

    candidate: Candidate
    share: float


def concave_frontier(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that some linear price of energy makes the best choice, in ascending order of energy."""
    hull: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.energy_mj, -c.quality)):
        if hull and candidate.quality <= hull[-1].quality:
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
    """Turns a plan into a sub-model for every inference. `now` is in seconds; where it goes back, the plan goes on from there.

    What is left in the battery is followed by the account of what was spent and corrected by the readings
    (`selector.adapt.charge`).
    """

    def __init__(
        self,
        plan: BatteryPlan,
        candidates: Iterable[Candidate],
        percent: float,
        now: float,
        seconds: float,
        *,
        others: Iterable[Candidate] = (),
    ) -> None:
        """`others` may be run too, by budgets without this plan: they are in the account, not in the mix."""
        known = list(candidates)
        self.plan, self._by_time = plan, not all(candidate.energy_mj < inf for candidate in known)
        self.hull: list[Candidate] = []
        self._costs = {candidate.key: candidate.energy_mj for candidate in self._in_energy(others)}
        self._consider(known)
        self.ends_at = now + seconds
        self.relative = plan.capacity_wh is None or self._by_time
        self._spent_mj = 0.0
        self._inferences, self._share = 0.0, 1.0  # of the longest input's energy, in the mean
        self._usual = 1.0  # such a share that relative units are of
        self._shift = 0.0
        self._debt = 0.0
        self._charge = self._guess(percent, now)
        self._begin(percent, now)
        self._paced_at = now
        self._paced_mj, self._at_most_mj = self.energy_left_mj(now), inf
        self._mix = best_mix(self.hull, self._paced_mj)
        self.latest = self._mix[0].candidate

    def consider(self, candidates: Iterable[Candidate]) -> None:
        """Mixes these from now on; the account goes on."""
        self._consider(candidates)
        self._mix = best_mix(self.hull, min(self._paced_mj, self._at_most_mj))

    def _consider(self, candidates: Iterable[Candidate]) -> None:
        known = self._in_energy(candidates)
        self.hull = concave_frontier(known) or self.hull
        self._costs |= {candidate.key: candidate.energy_mj for candidate in known}

    def _in_energy(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of known energy; where that of some is not, the time that one takes stands for its energy."""
        if self._by_time:
            return [candidate._replace(energy_mj=candidate.latency_ms) for candidate in candidates]
        return [candidate for candidate in candidates if candidate.energy_mj < inf]

    def end(self, at: float, now: float) -> None:
        """Is over at that moment from now on: the wall clock was set, or the device has moved."""
        moment = self._moment(now)
        before, self.ends_at = self.ends_at - moment, at + moment - now
        if abs(self.ends_at - moment - before) > MOVED * before and not self._charge.interrupted:
            self._begin_anew(self._charge.said, moment)

    @property
    def said(self) -> float:
        """By the battery's latest reading (per cent)."""
        return self._charge.said

    def reading(self, percent: float | None, now: float, others: Iterable[Planner] = ()) -> None:
        """What the battery says now; None, or what is no percentage, when it says nothing: then the account alone counts.
        `others`: of plans that this one must leave enough to."""
        moment, charge = self._moment(now), self._charge
        believed, again, anew = charge.believed, charge.interrupted, False
        if percent is not None and 0 <= percent <= 100:
            anew = charge.reading(percent, moment, self._spent_percent) and (again or percent > believed)
            if anew:  # it was charged
                self._begin_anew(percent, moment)
        if charge.believed != believed and not anew:
            self._gone = self._with - charge.believed, self._spent_mj - self._with_mj, moment - self._begun
            self._settled |= self._gone[0] >= LEARNT_PERCENT
        self._at_most_mj = min((one._paced_mj for one in others if one._by_time == self._by_time), default=inf)
        self._mix = best_mix(self.hull, min(self._pace(now), self._at_most_mj))

    @property
    def interrupted(self) -> bool:
        """No reading has followed since then."""
        return self._charge.interrupted

    def interrupt(self) -> None:
        """Inferences run on the mains now: the account begins anew with the next reading."""
        self._charge.interrupted = True

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

    def spent(self, key: Key, inferences: float = 1, share: float = 1.0) -> None:
        """So many inferences of this sub-model were made, of inputs that take this share of the energy that the profile says.
        Those to come are taken to be as long in the mean."""
        self._inferences = min(self._inferences, SHARES) + inferences
        self._share += (share - self._share) * inferences / self._inferences
        if self.relative and not self._settled:
            self._usual = self._share
        self._spent_mj += inferences * self._costs.get(key, 0.0) * share / self._usual

    def costing_at_most(self, candidate: Candidate) -> list[Key]:
        return [key for key, cost in self._costs.items() if cost <= candidate.energy_mj]

    @property
    def mix(self) -> Sequence[Share]:
        return self._mix

    def over(self, now: float) -> bool:
        """The moment that the battery was to last until has come."""
        return self._moment(now) >= self.ends_at

    def energy_left_mj(self, now: float) -> float:
        """Per inference, by the profile's measure: of the longest input."""
        moment, charge = self._moment(now), self._charge
        seconds = max(self.ends_at - moment, 1e-9)
        percent = charge.percent(moment, self._spent_percent) - self.plan.reserve_percent - charge.idling(moment, seconds)
        inferences = max(self.plan.rate * seconds, 1.0) * self._share / self._usual
        return 1e3 * percent * self._joules_per_percent / (charge.scale * inferences)

    def reason(self, now: float) -> str:
        hours = max(0.0, self.ends_at - self._moment(now)) / 3600
        unit = " in relative units" if self.relative else ""
        parts = " and ".join(f"{share.share:.0%} {share.candidate.submodel}" for share in self._mix)
        energy = min(self._paced_mj, self._at_most_mj) * self._share / self._usual
        return f"battery plan for {hours:.1f} h: {energy:.3g} mJ per inference{unit}, {parts}"

    def _guess(self, percent: float, moment: float, joules_per_percent: float | None = None) -> Charge:
        """The account of a battery of which nothing else is known. Without a capacity a full one is one unit, of which the
        middle of the frontier is taken to use its even share."""
        plan, seconds, self._settled = self.plan, max(self.ends_at - moment, 0.0), joules_per_percent is not None
        left = max(percent - plan.reserve_percent, 1.0)
        self._joules_per_percent = (plan.capacity_wh or 0.0) * 36.0  # a hundredth of 3600 per watt hour
        if self.relative:
            even = self.hull[len(self.hull) // 2].energy_mj / 1e3 * plan.rate * seconds / left
            self._joules_per_percent = max(1e-9, even if joules_per_percent is None else joules_per_percent)
        idle = 0.0 if self.relative else plan.idle_watts / self._joules_per_percent
        return Charge(percent, moment, idle, left / max(seconds, 1.0), self.relative, seconds, self._spent_percent)

    def _begin(self, percent: float, moment: float) -> None:
        """From this moment and charge on it is seen how the battery goes."""
        self._begun, self._with, self._with_mj = moment, percent, self._spent_mj
        self._gone = 0.0, 0.0, 0.0  # per cent, mJ and seconds, at the latest reading that was believed

    def _begin_anew(self, percent: float, moment: float) -> None:
        """With this charge, or another end. What was learnt of the battery stays where the account came about true by it; else
        it is guessed again, by what went so far or, where that is little, as at first."""
        gone, spent_mj, seconds = self._gone
        account = self._charge.idle * seconds + self._charge.scale * spent_mj / 1e3 / self._joules_per_percent
        if gone < LEARNT_PERCENT or not 0.5 < account / gone < 2:
            learnt = spent_mj / 1e3 / gone if gone >= LEARNT_PERCENT and spent_mj else None
            self._charge = self._guess(percent, moment, learnt)
        self._begin(percent, moment)

    @property
    def _spent_percent(self) -> float:
        return self._spent_mj / 1e3 / self._joules_per_percent

    def _moment(self, now: float) -> float:
        """On a clock that only goes forward."""
        if now + self._shift < self._charge.read_at:
            self._shift = self._charge.read_at - now
        return now + self._shift

    def _pace(self, now: float) -> float:
        """The energy for an inference (mJ): what the plan leaves, without its short ups and downs."""
        moment = self._moment(now)
        slowly = min(CALM_SECONDS, CALM_LEFT * (self.ends_at - moment), CALM_GONE * (moment - self._begun))
        follows = 1 - exp((self._paced_at - moment) / slowly) if slowly > 0 else 1.0
        self._paced_mj += follows * (self.energy_left_mj(now) - self._paced_mj)
        self._paced_at = moment
        return self._paced_mj


def _slope(a: Candidate, b: Candidate) -> float:
    gap = b.energy_mj - a.energy_mj
    return (b.quality - a.quality) / gap if gap > 0 else float("inf")
