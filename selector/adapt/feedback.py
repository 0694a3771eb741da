"""`SlowDown`: how much slower than its profile a device runs now, learnt from every run.

A profile is a promise made on a quiet day. ALERT (Wan et al., USENIX ATC 2020, section 3) tracks the ratio of what is measured
to what was promised with a Kalman filter and takes the noise for normal. A computer's latencies have heavy tails and surprises
come in clusters. So the level here is a median of the latest runs, and the margin above it is what keeps the asked share of
runs below whatever the distribution and however it changes: the largest errors of the latest runs, plus a term that rises with
every run that exceeded the prediction and falls with every other one in the proportion that balances at the asked share
(adaptive conformal inference; Gibbs & Candès 2021, section 2; Angelopoulos et al. 2023, "Conformal PID control", section 2.2).

The level multiplies. What single runs take beyond it does not: where a processor is taken away, it is for some milliseconds,
whatever the network takes. A longer run is hit more often, though, so an excess grows with the run as the tail of the profile
does: by a part that is the same for all sub-models and a part that grows with them (`selector.adapt.quiet`). For a shorter run
it is taken to shrink in proportion: hit as long, but less often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor, inf, isfinite, log
from statistics import median

import numpy as np
from numpy.typing import NDArray

from device_profiles import PERCENTILES
from selector.adapt.quiet import Quiet

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
_FALL = 0.0006  # by which the margin falls with every run that stayed below: the 99th percentile rises by 0.06 otherwise
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
    """Of one profile, whose latencies on a quiet day `quiet` knows.

    `observe` takes what a run took; `latency` says what the next stays below with the asked probability, `reach` which
    sub-models stay below a limit with it.
    """

    def __init__(self, quiet: Quiet) -> None:
        self.quiet = quiet
        self._excesses = _Excesses(quiet)
        self._surprise_at = -_WARY  # the latest run that took longer than was thought possible
        self._tails = {percentile: _Tail(percentile) for percentile in PERCENTILES}
        self._asked: list[_Tail] = []  # those that somebody has asked for: the others cost nothing
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.level = 0.0
        self.spread = max(0.02, quiet.spread)
        self._idle = 0.0
        self._suspect: tuple[str, float] | None = None  # the latest run, if it was a surprise: whose, and its error
        self._offsets: dict[str, _Offset] = {}
        self._latest: str | None = None
        self._runs_of_latest = 0
        self._seen_at = -float("inf")
        self._runs = 0
        self._seen = 0  # changes with every excess that is remembered

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
        self._take(submodel, expected_ms, value, now)

    def latency(self, percentile: int, expected_ms: float, now: float) -> float:
        """What a run of a sub-model whose median in the profile is `expected_ms` stays below at this percentile, one of
        PERCENTILES; ms, at least the level."""
        tail = self._tail(percentile)
        base = expected_ms * exp(self._level(now))
        return max(base, self._beyond(tail, base) * exp(tail.integral))

    def reach(self, percentile: int, limit_ms: float, now: float) -> float:
        """Of a sub-model that just keeps the limit at this percentile, the median in the profile (ms); 0 where none does."""
        tail = self._tail(percentile)
        wary = self._runs < self._surprise_at + _WARY
        if tail.reached[:2] != (limit_ms, self._seen):
            tail.reached = limit_ms, self._seen, self._excesses.reach(tail, limit_ms * exp(-tail.integral), wary)
        base, quiet = tail.reached[2], self.quiet.median(percentile, limit_ms)
        if not 0 < base <= quiet:
            return 0.0
        steps = floor((log(base / quiet) - self._level(now)) / _GRAIN)  # so that a choice can be the same as before
        return quiet * exp(_GRAIN * steps)

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
        """Neither ran for so long: the world is as the other profile of this device finds it."""
        self.level += (other.level - self.level) * (1 - exp(-max(0.0, seconds) / horizon))

    def _tail(self, percentile: int) -> _Tail:
        tail = self._tails[percentile]
        if tail not in self._asked:
            self._asked.append(tail)
        return tail

    def _level(self, now: float) -> float:
        return self.level + self._idle if self._idle and self.is_idle(now) else self.level

    def _beyond(self, tail: _Tail, base: float) -> float:
        return self._excesses.latency(tail, base, self._runs < self._surprise_at + _WARY)

    def _offset(self, submodel: str, now: float) -> float:
        found = self._offsets.get(submodel)
        return found.at(now) if found else 0.0

    def _take(self, submodel: str, expected_ms: float, value: float, now: float) -> None:
        error = value - self.level if self._recent else 0.0
        surprise = bool(self._recent) and abs(error) > max(_LEAST_STEP, 3 * self.spread)
        self.spread += 0.1 * (min(abs(error), 1.0) - self.spread)
        if self._recent:
            self._remember(expected_ms * exp(self.level), error, surprise)
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
        self._excesses.lower_latest(error)  # those of the two runs that showed the step are part of the level now
        self._seen += 1

    def _remember(self, base_ms: float, error: float, surprise: bool) -> None:
        if surprise and error > 0:
            self._surprise_at = self._runs
        latency_ms = base_ms * exp(error)
        for tail in self._asked:
            tail.judge(latency_ms > self._beyond(tail, base_ms) * exp(tail.integral))
        self._excesses.add(base_ms, latency_ms)
        self._seen += 1


class _Excesses:
    """What the latest runs took beyond the level, and what that says of runs of another length."""

    def __init__(self, quiet: Quiet) -> None:
        self.quiet = quiet
        self._base, self._excess = np.ones(LONG), np.zeros(LONG)  # ms, in the order of time

    def add(self, base_ms: float, latency_ms: float) -> None:
        """A run that takes `base_ms` by the level took so long."""
        for array, value in ((self._base, base_ms), (self._excess, latency_ms - base_ms)):
            array[:-1] = array[1:]
            array[-1] = value

    def lower_latest(self, step: float) -> None:
        """The level of both of the latest was higher by so much (a logarithm)."""
        latency = self._base[-2:] + self._excess[-2:]
        self._base[-2:] *= exp(step)
        self._excess[-2:] = latency - self._base[-2:]

    def latency(self, tail: _Tail, base_ms: float, wary: bool) -> float:
        """What a run that takes `base_ms` by the level stays below at the tail's percentile, ms; at least as on a quiet day."""
        longer = base_ms > self._base
        shares = np.where(longer & (self._excess > 0), self.quiet.growth(self._base, base_ms), base_ms / self._base)
        return max(base_ms + self._counting(tail, self._excess * shares, wary), self.quiet.latency(tail.percentile, base_ms))

    def reach(self, tail: _Tail, limit_ms: float, wary: bool) -> float:
        """The longest run by the level (ms) that stays below the limit at the tail's percentile."""
        in_proportion = limit_ms / np.maximum(1 + self._excess / self._base, 1e-12)
        longer = (in_proportion > self._base) & (self._excess > 0)
        runs = np.where(longer, np.maximum(self.quiet.longest(self._base, self._excess, limit_ms), self._base), in_proportion)
        return min(-self._counting(tail, -runs, wary), self.quiet.median(tail.percentile, limit_ms))

    def _counting(self, tail: _Tail, values: NDArray[np.float64], wary: bool) -> float:
        """Of what counts, the largest that the percentile does not leave out."""
        latest = float(np.partition(values[-WINDOW:], tail.place_in_window)[tail.place_in_window])
        return latest if wary else min(latest, float(np.partition(values, tail.place_in_long)[tail.place_in_long]))


class _Tail:
    """What is asked for at one percentile, and the margin that rises with every run that took longer than was predicted."""

    def __init__(self, percentile: int) -> None:
        self.percentile = percentile
        # Of ascending values what at most the share beyond the percentile exceeds; the largest where that is less than one.
        self.place_in_window, self.place_in_long = (size - 1 - size * (100 - percentile) // 100 for size in (WINDOW, LONG))
        self.integral = 0.0  # a logarithm
        self.reached: tuple[float, int, float] = (inf, -1, inf)  # a limit, after how many runs, the longest run within it
        self._rise = _FALL * percentile / (100 - percentile)

    def judge(self, exceeded: bool) -> None:
        self.integral = min(max(0.0, self.integral + (self._rise if exceeded else -_FALL)), _MOST)
