"""`SlowDown`: how much slower than its profile a device runs now, learnt from every run.

A profile is a promise made on a quiet day. ALERT (Wan et al., USENIX ATC 2020, section 3) tracks the ratio of what is measured
to what was promised with a Kalman filter and takes the noise for normal. Here the same ratio is tracked with order
statistics, because a computer's latencies have heavy tails: a median of the latest runs for the level, and the quantile of
earlier one-step prediction errors for the tail, which covers what it is asked to cover whatever the distribution is (split
conformal prediction; Vovk et al. 2005).

All is in logarithms: a slow-down multiplies.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, isfinite, log
from statistics import median

from device_profiles import PERCENTILES

RECENT = 9
"""Runs whose median is the level."""
ERRORS = 500
"""Prediction errors that are kept; the 99th percentile is then the fifth largest, so that a rare outlier does not decide."""
IDLE_SECONDS = 0.25
"""After a gap as long as this caches and clocks have gone cold, and the next run is slower by itself."""
_LEAST_STEP = log(1.12)
_GRAIN = 0.005
_PROBE_SECONDS = (20.0, 640.0)
_AFTER_SWITCH = 3  # runs whose surprise is put down to the sub-model


@dataclass
class _Offset:
    """How much more than the others one sub-model is slowed down; forgotten with time, so that it is tried again."""

    value: float
    since: float
    run: int
    seconds: float = _PROBE_SECONDS[0]

    def at(self, now: float) -> float:
        return self.value * exp(-max(0.0, now - self.since) / self.seconds)


class SlowDown:
    """Of one profile. `quantile` gives the logarithm of a quiet run's latency relative to the median, for a share.

    `observe` takes what a run took, `factor` says what the latency of the next is to be multiplied with so that it is not
    exceeded with the asked probability.
    """

    def __init__(self, quantile: Callable[[float], float]) -> None:
        shape = [quantile((i + 0.5) / ERRORS) for i in range(ERRORS)]
        self._typical = quantile(0.5)
        self._tails = {p: (min(ERRORS, ceil(p / 100 * (ERRORS + 1))) - 1, quantile(p / 100)) for p in PERCENTILES}
        self._errors = deque(shape[i * 73 % ERRORS] for i in range(ERRORS))  # no order in time: the quiet ones leave evenly
        self._sorted = sorted(shape)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.level = 0.0
        self.spread = max(0.02, quantile(0.9))
        self._idle = 0.0
        self._suspects: list[float] = []
        self._offsets: dict[str, _Offset] = {}
        self._latest: str | None = None
        self._runs_of_latest = 0
        self._seen_at = -float("inf")
        self._runs = 0

    def observe(self, submodel: str, expected_ms: float, latency_ms: float, now: float) -> None:
        """A run of this sub-model took so long; `expected_ms` is the profile's median. What is no time is left out."""
        if not (isfinite(latency_ms) and latency_ms > 0 and expected_ms > 0):
            return
        if submodel != self._latest:
            self._latest, self._runs_of_latest = submodel, 0
            self._suspects.clear()
        self._runs += 1
        self._runs_of_latest += 1
        value = log(latency_ms / expected_ms) - self._offset(submodel, now)
        if self.is_idle(now):
            if self._recent:
                surprise = value - self._idle - self.level
                self._idle = max(0.0, self._idle + 0.2 * min(max(surprise, -0.5), 0.5))
            value -= self._idle
        self._seen_at = now
        self._take(submodel, value, now)

    def factor(self, percentile: int, now: float) -> float:
        """What a quiet latency at this percentile, one of PERCENTILES, is multiplied with now; at least the level."""
        place, quiet = self._tails[percentile]
        logarithm = self.level + max(0.0, self._sorted[place] - quiet)
        if self._idle and self.is_idle(now):
            logarithm += self._idle
        return exp(_GRAIN * ceil(logarithm / _GRAIN))  # in steps, so that a choice can be the same as before

    def offset(self, submodel: str, now: float) -> float:
        """What this sub-model is slowed down by more than others, as a factor from 1."""
        return exp(self._offset(submodel, now)) if submodel in self._offsets else 1.0

    @property
    def suspicious(self) -> Sequence[str]:
        """The sub-models that have an offset."""
        return tuple(self._offsets)

    def is_idle(self, now: float) -> bool:
        return not 0 <= now - self._seen_at < IDLE_SECONDS  # a clock that was set back counts as a gap

    def approach(self, other: SlowDown, seconds: float, horizon: float = 5.0) -> None:
        """Without runs of its own for so long: the world is as the other profile of this device finds it."""
        self.level += (other.level - self.level) * (1 - exp(-max(0.0, seconds) / horizon))

    def _offset(self, submodel: str, now: float) -> float:
        found = self._offsets.get(submodel)
        return found.at(now) if found else 0.0

    def _take(self, submodel: str, value: float, now: float) -> None:
        error = value - self.level if self._recent else 0.0
        gate = max(_LEAST_STEP, 3 * self.spread)
        self.spread += 0.1 * (min(abs(error), 1.0) - self.spread)
        if self._recent and abs(error) > gate:
            if self._suspects and (self._suspects[-1] > 0) == (error > 0):
                self._step(submodel, min(self._suspects[-1], error, key=abs), now)
                self._suspects.clear()
                return
            self._suspects.append(error)
            self._remember(error)
            return
        self._suspects.clear()
        if self._recent:
            self._remember(error)
        self._recent.append(value)
        self.level = median(self._recent)

    def _step(self, submodel: str, error: float, now: float) -> None:
        """Two runs one after the other were off the same way: that is no outlier. The first of them was taken for one."""
        self._forget_latest()
        self.spread /= 2
        if error > 0 and self._runs_of_latest <= _AFTER_SWITCH:
            before = self._offsets.get(submodel)
            wronged = [n for n, o in self._offsets.items() if n != submodel and self._runs - o.run < 20 and 2 * o.value > error]
            if not wronged:
                seconds = min(2 * before.seconds, _PROBE_SECONDS[1]) if before else _PROBE_SECONDS[0]
                self._offsets[submodel] = _Offset(self._offset(submodel, now) + error, now, self._runs, seconds)
                return
            for name in wronged:  # two sub-models in a row: it was the world after all
                del self._offsets[name]
        level = self.level + error
        self._recent.clear()
        self._recent.append(level)
        self.level = level

    def _remember(self, error: float) -> None:
        oldest = self._errors.popleft()
        del self._sorted[bisect_left(self._sorted, oldest)]
        self._errors.append(error)
        insort(self._sorted, error)

    def _forget_latest(self) -> None:
        """The error of what turned out to be a step says nothing of the tail: one of the quiet shape takes its place."""
        latest = self._errors.pop()
        del self._sorted[bisect_left(self._sorted, latest)]
        self._errors.append(self._typical)
        insort(self._sorted, self._typical)
