"""`SlowDown`: how much slower than its profile a device runs now, learnt from every run.

A profile is a promise made on a quiet day. ALERT (Wan et al., USENIX ATC 2020, section 3) tracks the ratio of what is measured
to what was promised with a Kalman filter and takes the noise for normal. A computer's latencies have heavy tails and surprises
come in clusters. So the level here is a median of the latest runs, and the margin above it is what keeps the asked share of
runs below whatever the distribution and however it changes: the largest errors of the latest runs, plus a term that rises with
every run that exceeded the prediction and falls with every other one in the proportion that balances at the asked share
(adaptive conformal inference; Gibbs & Candès 2021, section 2; Angelopoulos et al. 2023, "Conformal PID control", section 2.2).

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
WINDOW = 20
"""Latest errors: surprises come in clusters, and what has not come again for so long is not waited for."""
LONG = 200
"""Errors among which the largest share that a percentile leaves out is left out, as soon as nothing like it has come again."""
IDLE_SECONDS = 0.25
"""After a gap as long as this caches and clocks have gone cold, and the next run is slower by itself."""
_FARTHEST = 1e6  # times the profile, or its reciprocal: beyond, one of the two is no time of that sub-model
_LEAST_STEP = log(1.12)
_GRAIN = 0.01
_PROBE_SECONDS = (20.0, 640.0)
_AFTER_SWITCH = 3  # runs whose surprise is put down to the sub-model
_WARY = 4  # runs after a surprise in which it is not yet taken for a single one
_FALL = 0.0005  # by which the margin falls with every run that stayed below: the 99th percentile rises by 0.05 otherwise
_MOST = 2.0  # of the margin


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
        self._latest_errors, self._errors = _Window(WINDOW), _Window(LONG)
        self._surprise_at = -_WARY  # the latest run that took longer than was thought possible
        self._tails = {percentile: _Tail(percentile, quantile(percentile / 100)) for percentile in PERCENTILES}
        self._asked: list[_Tail] = []  # those that somebody has asked for: the others cost nothing
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.level = 0.0
        self.spread = max(0.02, quantile(0.9))
        self._idle = 0.0
        self._suspect: tuple[str, float] | None = None  # the latest run, if it was a surprise: whose, and its error
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
        self._runs += 1
        self._runs_of_latest += 1
        value = log(min(max(latency_ms / expected_ms, 1 / _FARTHEST), _FARTHEST)) - self._offset(submodel, now)
        if self.is_idle(now):
            if self._recent:
                surprise = value - self._idle - self.level
                self._idle = max(0.0, self._idle + 0.2 * min(max(surprise, -0.5), 0.5))
            value -= self._idle
        self._seen_at = now
        self._take(submodel, value, now)

    def factor(self, percentile: int, now: float) -> float:
        """What a quiet latency at this percentile, one of PERCENTILES, is multiplied with now; at least the level."""
        tail = self._tails[percentile]
        if tail not in self._asked:
            self._asked.append(tail)
            self._margins()
        logarithm = self.level + tail.excess
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
        surprise = bool(self._recent) and abs(error) > max(_LEAST_STEP, 3 * self.spread)
        self.spread += 0.1 * (min(abs(error), 1.0) - self.spread)
        if self._recent:
            self._remember(error, surprise)
        before, self._suspect = self._suspect, (submodel, error) if surprise else None
        if not surprise:
            self._recent.append(value)
            self.level = median(self._recent)
        elif before is not None and (before[1] > 0) == (error > 0):
            self._step(submodel, min(before[1], error, key=abs), before[0] == submodel, now)

    def _step(self, submodel: str, error: float, same: bool, now: float) -> None:
        """Two runs one after the other were off the same way: that is no outlier. `same`: both were of this sub-model."""
        self._suspect = None
        self.spread /= 2
        if error > 0 and same and self._runs_of_latest <= _AFTER_SWITCH:
            before = self._offsets.get(submodel)
            wronged = [n for n, o in self._offsets.items() if n != submodel and self._runs - o.run < 20 and 2 * o.value > error]
            if not wronged:
                seconds = min(2 * before.seconds, _PROBE_SECONDS[1]) if before else _PROBE_SECONDS[0]
                self._offsets[submodel] = _Offset(self._offset(submodel, now) + error, now, self._runs, seconds)
                return
            for name in wronged:  # two sub-models in a row: it was the world after all
                del self._offsets[name]
        self.level += error
        self._recent.clear()
        self._recent.append(self.level)
        self._absorbed(error)

    def _remember(self, error: float, surprise: bool) -> None:
        self._latest_errors.add(error)
        self._errors.add(error)
        if surprise and error > 0:
            self._surprise_at = self._runs
        for tail in self._asked:
            tail.judge(error)
        self._margins()

    def _absorbed(self, step: float) -> None:
        """The errors of the two runs that showed the step are part of the level now."""
        for window in (self._latest_errors, self._errors):
            window.lower_latest(step)
        self._margins()

    def _margins(self) -> None:
        wary = self._runs < self._surprise_at + _WARY
        for tail in self._asked:
            largest = self._latest_errors.ascending[tail.place_in_window]
            tail.set(largest if wary else min(largest, self._errors.ascending[tail.place_in_long]))


class _Window:
    """The latest errors, in the order of time and of size."""

    def __init__(self, size: int) -> None:
        self.errors = deque([0.0] * size)
        self.ascending = [0.0] * size

    def add(self, error: float) -> None:
        self._exchange(self.errors.popleft(), error)
        self.errors.append(error)

    def lower_latest(self, step: float) -> None:
        """Both of the latest by so much."""
        for place in (-1, -2):
            self._exchange(self.errors[place], self.errors[place] - step)
            self.errors[place] -= step

    def _exchange(self, old: float, new: float) -> None:
        del self.ascending[bisect_left(self.ascending, old)]
        insort(self.ascending, new)


class _Tail:
    """The margin above the level at one percentile; `quiet` is what the profile has there already (a logarithm)."""

    def __init__(self, percentile: int, quiet: float) -> None:
        self.quiet, self.excess = quiet, 0.0  # beyond the profile's own
        # Of ascending errors what at most the share beyond the percentile exceeds; the largest where that is less than one.
        self.place_in_window, self.place_in_long = (-1 - size * (100 - percentile) // 100 for size in (WINDOW, LONG))
        self._rise = _FALL * percentile / (100 - percentile)
        self._integral = 0.0

    def judge(self, error: float) -> None:
        """A run was so far above the level."""
        exceeded = error > self.quiet + self.excess
        self._integral = min(max(0.0, self._integral + (self._rise if exceeded else -_FALL)), _MOST)

    def set(self, largest: float) -> None:
        """By the errors that count."""
        self.excess = max(0.0, largest - self.quiet) + self._integral
