"""`Planner`: the battery lasts until a given moment, at the best accuracy that this leaves.

What a plan leaves per inference, e, is spent best by mixing two sub-models: the linear program "maximize the mean accuracy
subject to a mean energy of at most e" has an optimal vertex with two non-zero shares, neighbours on the concave frontier of
accuracy over energy (Dantzig 1963, chapter 7). Reality differs from the profile and from the battery's own percentage, so
that the plan is made again with every reading.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import exp, inf, sqrt
from typing import NamedTuple

import numpy as np

from selector.choose.budget import BatteryPlan
from selector.choose.candidates import Candidate, Key

# Chosen on other seeds and errors than those reported by benchmarks/adapt/battery.py.
UNSURE = 0.3
"""Standard deviation of the idle power and of the profile's energies, before anything was learnt; relative."""
UNSURE_RELATIVE = 1.0
"""Of the energies in relative units."""
DRIFT = 0.06
"""By so much they may change while the battery loses one per cent; relative."""
WANDER = 0.05
"""Per cent that nothing explains, of each that is lost."""
EDGE = 0.15
"""Of a step: how exactly the moment of a change tells the charge."""
BURST = 0.6
"""Standard deviation of what is drawn for a while, relative to what the battery can give on average."""
BURST_SECONDS = 1200.0
"""Within which it passes; at most a sixth of the plan."""
MARGIN = 1.0
"""Of a usual burst: what is kept for one near the end."""
BURSTS_KEPT = 0.05
"""By so much every change of the reading moves the idea of a usual burst."""
LEAST_STEP = 0.1
"""Per cent: finer readings are taken to be no more exact."""
STALE_STEPS = 3.0
"""By the account: a battery that says the same for longer is stuck, and no longer believed."""
DOUBT_SECONDS = 300.0
"""So long a reading that cannot be must last to be believed; at most a twentieth of the plan."""
CALM_SECONDS = 900.0
"""Time constant with which the energy per inference follows what is left: the frontier is concave, so that every detour costs
accuracy."""
CALM_LEFT, CALM_GONE = 0.06, 0.2
"""At most this share of what is left of the plan, as it must end in time, and of what is over, as little is known at first."""


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

    What is left in the battery is followed by the account of what was spent and corrected by the readings (see `_Charge`).
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
        # Without a capacity a full battery is one unit, of which the middle of the frontier is taken to use its even share.
        self._joules_per_percent = (plan.capacity_wh or 0.0) * 36.0  # a hundredth of 3600 per watt hour
        if self.relative:
            middle = self.hull[len(self.hull) // 2].energy_mj / 1e3
            self._joules_per_percent = max(1e-9, middle * plan.rate * seconds / max(percent - plan.reserve_percent, 1e-9))
        idle = 0.0 if self.relative else plan.idle_watts / self._joules_per_percent
        spending = max(percent - plan.reserve_percent, 1.0) / max(seconds, 1.0)
        self._charge = _Charge(percent, now, idle, spending, self.relative, seconds)
        self._spent_mj = 0.0
        self._shift = 0.0
        self._debt = 0.0
        self._begun = self._paced_at = now
        self._paced_mj = self.energy_left_mj(now)
        self._mix = best_mix(self.hull, self._paced_mj)
        self.latest = self._mix[0].candidate

    def consider(self, candidates: Iterable[Candidate]) -> None:
        """Mixes these from now on; the account goes on."""
        self._consider(candidates)
        self._mix = best_mix(self.hull, self._paced_mj)

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
        self.ends_at = at + self._moment(now) - now

    @property
    def said(self) -> float:
        """By the battery's latest reading (per cent)."""
        return self._charge.said

    def reading(self, percent: float | None, now: float) -> None:
        """What the battery says now; None, or what is no percentage, when it says nothing: then the account alone counts."""
        moment = self._moment(now)
        again = self._charge.interrupted
        if percent is not None and 0 <= percent <= 100:
            self._charge.reading(percent, moment, self._spent_percent)
        if again and not self._charge.interrupted:
            self._begun = moment
        self._mix = best_mix(self.hull, self._pace(now))

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

    def spent(self, key: Key, inferences: float = 1) -> None:
        """So many inferences of this sub-model were made; one that costs half of what the profile says is half of one."""
        self._spent_mj += inferences * self._costs.get(key, 0.0)

    def costing_at_most(self, candidate: Candidate) -> list[Key]:
        return [key for key, cost in self._costs.items() if cost <= candidate.energy_mj]

    @property
    def mix(self) -> Sequence[Share]:
        return self._mix

    def over(self, now: float) -> bool:
        """The moment that the battery was to last until has come."""
        return self._moment(now) >= self.ends_at

    def energy_left_mj(self, now: float) -> float:
        """Per inference, by the profile's measure."""
        moment, charge = self._moment(now), self._charge
        seconds = max(self.ends_at - moment, 1e-9)
        percent = charge.percent(moment, self._spent_percent) - self.plan.reserve_percent - charge.idling(moment, seconds)
        return 1e3 * percent * self._joules_per_percent / (charge.scale * max(self.plan.rate * seconds, 1.0))

    def reason(self, now: float) -> str:
        hours = max(0.0, self.ends_at - self._moment(now)) / 3600
        unit = " in relative units" if self.relative else ""
        parts = " and ".join(f"{share.share:.0%} {share.candidate.submodel}" for share in self._mix)
        return f"battery plan for {hours:.1f} h: {self._paced_mj:.3g} mJ per inference{unit}, {parts}"

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


class _Charge:
    """What is left in the battery (per cent), and at which rate it goes: (idle + burst) × seconds + scale × what was spent by
    the profile. A Kalman filter over the four (Kalman 1960; Plett 2004, Journal of Power Sources 134, for batteries). A burst
    passes: what draws for some minutes, or a voltage that sinks and recovers, is not taken to go on until the end.

    Batteries tell rounded values: nothing is learnt while one stays, and the moment at which it changes tells the charge
    exactly, half a step from the new value. A reading that is far off is believed when it has lasted for some minutes.
    """

    def __init__(self, percent: float, now: float, idle: float, spending: float, relative: bool, seconds: float) -> None:
        self.read_at, self.interrupted = now, False
        self.patience = min(DOUBT_SECONDS, seconds / 20)
        self.said, self._step, self._moved = percent, 1.0, False
        self._doubt: float | None = None  # since when the battery has said something that cannot be
        self._state = np.array([percent, idle, 1.0, 0.0])
        self._bursts = 0.0  # mean of the squares of what was drawn for a while
        self._passing = max(1.0, min(BURST_SECONDS, seconds / 6))
        self._at, self._spent, self._changed_at = now, 0.0, percent
        self._spending = spending  # per cent per second, as a measure of what is a large change
        unsure = UNSURE_RELATIVE if relative else UNSURE
        self._spread = np.diag([self._rounding(percent), (UNSURE * max(idle, 0.1 * spending)) ** 2, unsure**2, 0.0])

    @property
    def idle(self) -> float:
        return max(0.0, float(self._state[1]))

    @property
    def scale(self) -> float:
        return max(0.05, float(self._state[2]))

    def idling(self, now: float, seconds: float) -> float:
        """Per cent that go besides the inferences in so many seconds from now on, and what a usual burst at the end takes."""
        burst = float(self._state[3]) * exp((self._at - now) / self._passing) * self._passing
        burst += MARGIN * sqrt(self._bursts) * self._passing
        return max(0.0, self.idle * seconds + burst * (1 - exp(-seconds / self._passing)))

    def percent(self, now: float, spent: float) -> float:
        """By the account; what the battery says bounds it, unless that has not moved for much too long."""
        by_account = self._by_account(now, spent)
        lowest = self.said - self._step / 2
        if by_account >= lowest or self._doubt is not None or not self._moved:
            return by_account
        return by_account if self._changed_at - by_account > STALE_STEPS * self._step else lowest

    def reading(self, percent: float, now: float, spent: float) -> None:
        self.read_at = now
        if self.interrupted:
            self._begin(percent, now, spent)
            return
        if percent == self.said and self._doubt is None:
            return
        change, self.said = percent - self.said, percent
        if change:
            whole = self._step if self._moved else 5.0 if percent % 5 == 0 == (percent - change) % 5 else 1.0
            self._step, self._moved = max(min(whole, abs(change)), LEAST_STEP), True
        if abs(change) > self._step or not change:
            seen, noise = percent, self._step**2 / 12
        else:
            seen, noise = percent - change / 2, (EDGE * self._step) ** 2
        self._predict(now, spent)
        off, variance = seen - self._state[0], self._spread[0, 0] + noise + WANDER**2
        if abs(off) > max(1.5 * self._step, 4 * variance**0.5):
            self._doubt = now if self._doubt is None else self._doubt
            if now - self._doubt >= self.patience:
                self._begin(percent, now, spent)
            return
        self._doubt = None
        gain = self._spread[:, 0] / variance
        self._state = self._state + gain * off
        self._spread = self._spread - np.outer(gain, self._spread[0])
        self._changed_at = float(self._state[0])
        self._bursts += BURSTS_KEPT * (float(self._state[3]) ** 2 - self._bursts)

    def _begin(self, percent: float, now: float, spent: float) -> None:
        """The charge is what the battery says; what was learnt of the rates stays."""
        self._predict(now, spent)
        self._state[0] = self._changed_at = percent
        self._spread[0, :] = self._spread[:, 0] = 0.0
        self._spread[0, 0] = self._rounding(percent)
        self.said, self._doubt, self.interrupted = percent, None, False

    def _predict(self, now: float, spent: float) -> None:
        seconds, more = now - self._at, spent - self._spent
        account = self._by_account(now, spent)
        gone, self._state[0] = max(0.0, self._state[0] - account), account
        stays = exp(-seconds / self._passing)
        move = np.eye(4)
        move[0, 1:] = -seconds, -more, -self._passing * (1 - stays)
        move[3, 3] = stays
        self._state[3] *= stays
        self._spread = move @ self._spread @ move.T
        typical = max(self._state[1], 0.1 * self._spending)
        drift = np.array([WANDER**2, (DRIFT * typical) ** 2, (DRIFT * self._state[2]) ** 2]) * gone
        self._spread += np.diag([*drift, (BURST * self._spending) ** 2 * (1 - stays**2)])
        self._at, self._spent = now, spent

    def _by_account(self, now: float, spent: float) -> float:
        seconds = now - self._at
        charge, burst = float(self._state[0]), float(self._state[3]) * self._passing * (1 - exp(-seconds / self._passing))
        return charge - (self.idle * seconds + burst + self.scale * (spent - self._spent))

    def _rounding(self, percent: float) -> float:
        """Variance of what is rounded: to whole per cent, perhaps to five."""
        step = self._step if self._moved else 1.0 if percent % 5 else 5.0
        return step**2 / 12


def _slope(a: Candidate, b: Candidate) -> float:
    gap = b.energy_mj - a.energy_mj
    return (b.quality - a.quality) / gap if gap > 0 else float("inf")
