"""`Charge`: what is left in a battery, by the account of what was spent and by its readings."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np

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


class Charge:
    """What is left in the battery (per cent), and at which rate it goes: (idle + burst) × seconds + scale × what was spent by
    the profile. A Kalman filter over the four (Kalman 1960; Plett 2004, Journal of Power Sources 134, for batteries). A burst
    passes: what draws for some minutes, or a voltage that sinks and recovers, is not taken to go on until the end.

    Batteries tell rounded values: nothing is learnt while one stays, and the moment at which it changes tells the charge
    exactly, half a step from the new value. A reading that is far off is believed when it has lasted for some minutes.
    """

    def __init__(
        self, percent: float, now: float, idle: float, spending: float, relative: bool, seconds: float, spent: float = 0.0
    ) -> None:
        self.read_at, self.interrupted = now, False
        self.patience = min(DOUBT_SECONDS, seconds / 20)
        self.said, self._step, self._moved = percent, 1.0, False
        self._doubt: float | None = None  # since when the battery has said something that cannot be
        self._state = np.array([percent, idle, 1.0, 0.0])
        self._bursts = 0.0  # mean of the squares of what was drawn for a while
        self._passing = max(1.0, min(BURST_SECONDS, seconds / 6))
        self._at, self._spent, self.believed = now, spent, percent  # by the latest reading that was believed
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
        return by_account if self.believed - by_account > STALE_STEPS * self._step else lowest

    def reading(self, percent: float, now: float, spent: float) -> bool:
        """Whether the account begins anew with what the battery says."""
        self.read_at = now
        if self.interrupted:
            self._begin(percent, now, spent)
            return True
        if percent == self.said and self._doubt is None:
            return False
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
            if now - self._doubt < self.patience:
                return False
            self._begin(percent, now, spent)
            return True
        self._doubt = None
        gain = self._spread[:, 0] / variance
        self._state = self._state + gain * off
        self._spread = self._spread - np.outer(gain, self._spread[0])
        self.believed = float(self._state[0])
        self._bursts += BURSTS_KEPT * (float(self._state[3]) ** 2 - self._bursts)
        return False

    def _begin(self, percent: float, now: float, spent: float) -> None:
        """The charge is what the battery says; what was learnt of the rates stays."""
        self._predict(now, spent)
        self._state[0] = self.believed = percent
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
