"""The policies that are compared. Each chooses among sizes, ascending in latency and accuracy, and sees what runs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Protocol

from device_profiles import Profile
from selector import Budget, Selector
from selector.adapt.controller import Controller
from selector.adapt.quiet import pooled

PERCENTILE = 99


class Policy(Protocol):
    def choose(self, now: float) -> int:
        """The number of the size to run; `now` in seconds."""

    def observe(self, size: int, latency_ms: float, now: float) -> None:
        """A run of that size took so long."""


class Static:
    """Always the same."""

    def __init__(self, size: int) -> None:
        self._size = size

    def choose(self, now: float) -> int:
        return self._size

    def observe(self, size: int, latency_ms: float, now: float) -> None:
        pass


class Reactive:
    """One size down after a missed deadline, one up after `patience` runs in a row that left room for the next size."""

    def __init__(self, medians: Sequence[float], limit_ms: float, start: int, patience: int = 10) -> None:
        self._medians, self._limit, self._size, self._patience, self._easy = medians, limit_ms, start, patience, 0

    def choose(self, now: float) -> int:
        return self._size

    def observe(self, size: int, latency_ms: float, now: float) -> None:
        if latency_ms > self._limit:
            self._size, self._easy = max(size - 1, 0), 0
            return
        if size + 1 < len(self._medians) and latency_ms * self._medians[size + 1] / self._medians[size] < self._limit:
            self._easy += 1
            if self._easy >= self._patience:
                self._size, self._easy = size + 1, 0
        else:
            self._easy = 0


class Kalman:
    """ALERT (Wan et al., USENIX ATC 2020, section 3) as we read it: the slow-down is normal, its mean and variance are filtered
    with a process noise that adapts to the innovations."""

    def __init__(self, medians: Sequence[float], limit_ms: float) -> None:
        self._medians, self._limit = medians, limit_ms
        self._mean, self._variance, self._gain, self._noise = 1.0, 0.1, 0.5, 0.1
        self._quantile = NormalDist().inv_cdf(PERCENTILE / 100)

    def choose(self, now: float) -> int:
        factor = self._mean + self._quantile * sqrt(self._variance + 0.001)
        fitting = [size for size, median in enumerate(self._medians) if median * factor <= self._limit]
        return fitting[-1] if fitting else 0

    def observe(self, size: int, latency_ms: float, now: float) -> None:
        innovation = latency_ms / self._medians[size] - self._mean
        self._noise = max(0.1, 0.3 * self._noise + 0.7 * (self._gain * innovation) ** 2)
        prior = (1 - self._gain) * self._variance + self._noise
        self._gain = prior / (prior + 0.001)
        self._mean += self._gain * innovation
        self._variance = prior


class Ours:
    """The decision code of `Runtime`."""

    def __init__(self, profile: Profile, accuracies: Mapping[str, float], names: Sequence[str], limit_ms: float) -> None:
        as_runtime = pooled(profile)
        self.controller = Controller(Selector(as_runtime, accuracies), [as_runtime])
        self._budget = Budget(latency_ms=limit_ms, percentile=PERCENTILE)
        self._places = {name: place for place, name in enumerate(names)}

    def choose(self, now: float) -> int:
        self._selection = self.controller.choose(self._budget, now)
        return self._places[self._selection.submodel]

    def observe(self, size: int, latency_ms: float, now: float) -> None:
        self.controller.observe(self._selection, latency_ms, now)
