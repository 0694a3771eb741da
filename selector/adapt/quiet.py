"""`Quiet`: what a profile says of the tail of its latencies, as a part in milliseconds and a part in proportion.

Where a run waits for the processor, it waits for a time slice of some milliseconds, however short it is itself. Such a tail of
small networks, taken for a multiple, would keep large ones from every deadline. So the excess of a percentile over the median
is taken for `stall_ms + share * median`, of all sub-models of a device together: a 99th percentile of some hundred runs is
little more than the slowest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
from numpy.typing import NDArray

from device_profiles import PERCENTILES, LatencyMs, Profile

_UNCERTAIN = 0.1
"""Of a run: by so much its level is uncertain where small sub-models have such tails, be those of the large ones shorter."""


@dataclass(frozen=True)
class Tail:
    """The excess of one percentile over the median."""

    stall_ms: float = 0.0  # whatever the network takes
    share: float = 0.0  # of its median
    careful: float = 0.0  # the share that is counted with: not below twice what is typical, up to _UNCERTAIN


@dataclass(frozen=True)
class Quiet:
    """The tails of one profile, by percentile."""

    tails: Mapping[int, Tail]
    spread: float = 0.0  # the 90th percentile over the median, a logarithm: of its sub-models the median

    @classmethod
    def of(cls, profile: Profile) -> Quiet:
        """Fitted to all sub-models that were measured, or to the predicted ones where none was."""
        latencies = [measured.latency_ms for measured in profile.submodels.values()]
        latencies = [one for one in latencies if one.n] or latencies  # what is predicted has no tail of its own
        medians = [one.p50 for one in latencies]
        tails = {p: fitted(medians, [getattr(one, f"p{p}") - one.p50 for one in latencies]) for p in PERCENTILES}
        return cls(tails, float(np.log(median(one.p90 / one.p50 for one in latencies))))

    def latency(self, percentile: int, median_ms: float) -> float:
        """At a percentile of PERCENTILES, ms."""
        tail = self.tails[percentile]
        return median_ms * (1 + tail.careful) + tail.stall_ms

    def median(self, percentile: int, latency_ms: float) -> float:
        """Whose latency at that percentile is so much, ms; below 0 where not even nothing at all would take so little."""
        tail = self.tails[percentile]
        return (latency_ms - tail.stall_ms) / (1 + tail.careful)

    def growth(self, shorter_ms: NDArray[np.float64], longer_ms: float) -> NDArray[np.float64]:
        """How many times the excess of a run the excess of a longer one is, by the 99th percentile's two parts."""
        stall, share = self._parts
        return (stall + share * longer_ms) / (stall + share * shorter_ms)

    def longest(self, base_ms: NDArray[np.float64], excess_ms: NDArray[np.float64], limit_ms: float) -> NDArray[np.float64]:
        """The run that reaches the limit with the excess of these grown to it, ms; right where it is longer than they are."""
        stall, share = self._parts
        times = excess_ms / (stall + share * base_ms)
        return (limit_ms - times * stall) / (1 + times * share)

    @property
    def _parts(self) -> tuple[float, float]:
        """In proportion where the profile has no tail at all."""
        tail = self.tails[99]
        return (tail.stall_ms, tail.share) if tail.stall_ms + tail.share > 0 else (0.0, 1.0)


def fitted(medians: Sequence[float], excesses: Sequence[float]) -> Tail:
    """The two parts, neither below 0, by the median of the slopes between all pairs (Theil 1950, Sen 1968), which a few
    outliers do not move."""
    slopes = [(b - a) / (y - x) for (x, a), (y, b) in combinations(zip(medians, excesses, strict=True), 2) if x != y]
    share = max(0.0, median(slopes)) if slopes else 0.0
    stall = max(0.0, median(excess - share * one for one, excess in zip(medians, excesses, strict=True)))
    typical = max(0.0, median(excess / one for one, excess in zip(medians, excesses, strict=True)))
    return Tail(stall, share, max(share, min(2 * typical, _UNCERTAIN))) if stall else Tail(0.0, typical, typical)


def pooled(profile: Profile) -> Profile:
    """The same with the tails of all its sub-models taken together (see `Quiet`): each one's 90th and 99th percentile is what
    its median and the device's two parts make of it. Of one token too; how long a prompt takes stays as it was measured."""
    quiet = Quiet.of(profile)

    def typical(latency: LatencyMs) -> LatencyMs:
        p90 = quiet.latency(90, latency.p50)
        return latency.model_copy(update={"p90": p90, "p99": max(p90, quiet.latency(99, latency.p50))})

    submodels = {}
    for name, measured in profile.submodels.items():
        lengths = {length: typical(latency) for length, latency in measured.lengths.items()}
        update: dict[str, object] = {"latency_ms": typical(measured.latency_ms), "lengths": lengths}
        if measured.decoding is not None:
            token = {context: typical(latency) for context, latency in measured.decoding.token.items()}
            update["decoding"] = measured.decoding.model_copy(update={"token": token})
        submodels[name] = measured.model_copy(update=update)
    return profile.model_copy(update={"submodels": submodels})
