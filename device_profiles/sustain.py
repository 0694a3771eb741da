"""Keeps a device busy with one sub-model, and notes how what it takes drifts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_profiles.energy import EnergyMeter
from device_profiles.harness import WARMUP_RUNS, Run
from device_profiles.schema import MAX_DRIFT, Drift, LatencyMs, ProfileError, Sustained

LEAST_MINUTES, MOST_MINUTES = 2.0, 240.0
MINUTE = 60.0
STRETCH = 10.0
"""Seconds whose runs are put together; more where there would be more stretches than a profile tells of."""
SETTLED_WITHIN = 0.05
"""Of what runs took at the end: nearer to it nothing drifts."""
_KEPT = 2000  # runs of a stretch, for percentiles over several


@dataclass(frozen=True, eq=False)  # one is itself: arrays do not compare
class _Stretch:
    at: float  # seconds since the beginning
    ms: NDArray[np.float64]  # of runs, at most _KEPT of them
    runs: int
    joules: float | None

    @property
    def p50(self) -> float:
        return float(np.median(self.ms))


def check_minutes(minutes: float) -> None:
    """Raises ProfileError naming the value."""
    if not isinstance(minutes, int | float) or not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        raise ProfileError(f"sustain = {minutes!r}: allowed are {LEAST_MINUTES:g} to {MOST_MINUTES:g} minutes")


def sustain(
    run: Run,
    minutes: float,
    *,
    submodel: str,
    meter: EnergyMeter | None = None,
    clock: Callable[[], float] | None = None,
    told: Callable[[float, float], object] = lambda seconds, p50: None,
) -> Sustained:
    """Calls `run` without a pause for so many minutes. `clock`: seconds (default: `time.perf_counter`). `told` is called after
    each stretch with the seconds that are over and its median (ms). Raises ProfileError for minutes that are not allowed."""
    check_minutes(minutes)
    clock = clock or time.perf_counter
    for _ in range(WARMUP_RUNS):
        run()
    whole, length = minutes * MINUTE, max(STRETCH, minutes * MINUTE / (MAX_DRIFT - 8))
    begun, stretches = clock(), list[_Stretch]()
    while (at := clock() - begun) < whole:
        stretches.append(_stretch(run, at, begun + at + length, clock, meter))
        told(min(clock() - begun, whole), stretches[-1].p50)
    return _summary(stretches, submodel, minutes)


def _stretch(run: Run, at: float, until: float, clock: Callable[[], float], meter: EnergyMeter | None) -> _Stretch:
    took: list[float] = []
    before = _joules(meter)
    while True:
        begun = clock()
        run()
        ended = clock()
        took.append((ended - begun) * 1e3)
        if ended >= until:
            break
    after = _joules(meter)
    joules = None if before is None or after is None else after - before
    return _Stretch(at, np.array(took)[:: -(-len(took) // _KEPT)], len(took), joules)


def _joules(meter: EnergyMeter | None) -> float | None:
    with suppress(OSError):  # a battery that was taken out, say
        return None if meter is None else meter.joules()
    return None


def _summary(stretches: Sequence[_Stretch], submodel: str, minutes: float) -> Sustained:
    first = [one for one in stretches if one.at < MINUTE]
    last = [one for one in stretches if one.at >= minutes * MINUTE - MINUTE and one not in first] or list(stretches[-1:])
    place = _settled(stretches, float(np.median([one.p50 for one in last])), len(first))
    late = stretches.index(last[0])
    after = stretches[min(place, late) :]
    return Sustained(
        submodel=submodel,
        minutes=minutes,
        first=_latency(first),
        after=_latency(after),
        first_energy_mj=_energy_mj(first),
        after_energy_mj=_energy_mj(after),
        settled_minutes=None if place > late else round(stretches[place].at / MINUTE, 3),
        drift=tuple(Drift(seconds=round(s.at, 1), p50=round(s.p50, 5), energy_mj=_energy_mj([s])) for s in stretches),
    )


def _settled(stretches: Sequence[_Stretch], end_ms: float, begin: int) -> int:
    """The first place after the first minute from which on all medians, each of three stretches, are near the end's."""
    medians = [float(np.median([one.p50 for one in stretches[max(0, i - 1) : i + 2]])) for i in range(len(stretches))]
    off = [i for i in range(begin, len(stretches)) if abs(medians[i] - end_ms) > SETTLED_WITHIN * end_ms]
    return off[-1] + 1 if off else begin


def _latency(stretches: Sequence[_Stretch]) -> LatencyMs:
    ms = np.concatenate([one.ms for one in stretches])
    p50, p90, p99 = (round(float(value), 5) for value in np.percentile(ms, [50, 90, 99]))
    return LatencyMs(p50=p50, p90=p90, p99=p99, mean=round(float(ms.mean()), 5), n=sum(one.runs for one in stretches))


def _energy_mj(stretches: Sequence[_Stretch]) -> float | None:
    """Of one run; None where a stretch has none."""
    if any(one.joules is None for one in stretches):
        return None
    return round(1e3 * sum(one.joules or 0.0 for one in stretches) / sum(one.runs for one in stretches), 5)
