"""Latency at a length that was not measured: what a text of n tokens takes, from what some lengths took.

A layer's work grows in proportion to the tokens, that of attention with their square, and some of a call is the same for all:
`a + b n + c n^2`, none below zero, is fitted to the medians (relative least squares). How far each measured length is off it is
a factor there, and between two lengths the factor goes from the one to the other evenly in the logarithms. So what was measured
is met, the square between is too, and steps of the hardware (blocks of a matrix product, caches) are where they were seen.

Never falls with the length: in the logarithms the sum is convex, so a piece that began by falling ends by rising, and is held
at its beginning until then. Pure Python: choosing a sub-model takes less time than to import numpy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import exp, log
from typing import Literal

from device_profiles.schema import Figure, LatencyMs, Measurement, Source

Statistic = Literal["p50", "p90", "p99", "mean"]
STATISTICS: tuple[Statistic, ...] = ("p50", "p90", "p99", "mean")

_FORMS = ((0,), (1,), (0, 1), (2,), (0, 2), (1, 2), (0, 1, 2))
"""Which powers are used; the first of those that fit alike."""
_STEPS_PER_DOUBLING = 8


def bucket(length: int) -> int:
    """The length rounded up to the next of a series that grows by an eighth at most: 1, 2, … 16, 18, 20, … 32, 36, … Powers of
    two are among them."""
    step = max(1, (1 << (length - 1).bit_length()) // (2 * _STEPS_PER_DOUBLING)) if length > 1 else 1
    return -(-length // step) * step


class Curve:
    """One sub-model's latency over the length. `measured`: by length, one or more."""

    def __init__(self, measured: Mapping[int, LatencyMs]) -> None:
        self.lengths = sorted(measured)
        self._measured = measured

    def at(self, length: int, statistic: Statistic = "p50") -> float:
        """Milliseconds. Beyond the longest as the fit goes on, below the shortest as it goes down."""
        values, logs = self._values[statistic], self._factors[statistic]
        place = bisect_left(self.lengths, length)
        if place < len(values) and self.lengths[place] == length:
            return values[place]  # to the last digit: a limit of just so much is kept
        fit = self._fit(length)
        if place in (0, len(values)):
            return exp(logs[min(place, len(values) - 1)]) * fit
        low, high = self.lengths[place - 1 : place + 1]
        share = log(length / low) / log(high / low)
        found = exp(logs[place - 1] + share * (logs[place] - logs[place - 1])) * fit
        return min(max(found, values[place - 1]), values[place])

    def share(self, length: int) -> float:
        """Of what the longest takes in the mean; so much of its energy too."""
        return self.at(length, "mean") / self._values["mean"][-1]

    def latency(self, length: int) -> LatencyMs:
        """All statistics; `n` is 0 where that length was not measured."""
        found = {name: self.at(length, name) for name in STATISTICS}
        found["p90"] = max(found["p50"], found["p90"])  # equal ones may differ in the last digit
        found["p99"] = max(found["p90"], found["p99"])
        return LatencyMs(**found, n=self._measured[length].n if length in self._measured else 0)

    @cached_property
    def _values(self) -> dict[Statistic, list[float]]:
        """By statistic what was measured; a longer input never takes less, whatever the noise of a minute says."""
        return {name: list(accumulate((getattr(self._measured[n], name) for n in self.lengths), max)) for name in STATISTICS}

    @cached_property
    def _factors(self) -> dict[Statistic, list[float]]:
        """By statistic: at each measured length the logarithm of what it takes over the fit."""
        fits = [log(self._fit(n)) for n in self.lengths]
        return {
            name: [log(value) - fit for value, fit in zip(values, fits, strict=True)] for name, values in self._values.items()
        }

    def _fit(self, length: int) -> float:
        if len(self.lengths) == 1:
            length = max(length, self.lengths[0])
        a, b, c = self._weights
        return a + length * (b + length * c)

    @cached_property
    def _weights(self) -> tuple[float, float, float]:
        """Of the powers 0, 1 and 2. With a single length what is longer takes more in proportion, and what is shorter as much:
        rather promised too slow than too fast."""
        medians = self._values["p50"]
        if len(medians) == 1:
            return 0.0, medians[0] / self.lengths[0], 0.0
        longest = self.lengths[-1]  # powers of the length over it, so that sums stay near 1
        rows = [[(n / longest) ** k / value for k in range(3)] for n, value in zip(self.lengths, medians, strict=True)]
        best, weights = float("inf"), [0.0, 0.0, 0.0]
        for form in _FORMS:
            found = _least_squares([[row[k] for k in form] for row in rows])
            if found is None or min(found) < 0:
                continue
            error = sum((1 - sum(w * row[k] for w, k in zip(found, form, strict=True))) ** 2 for row in rows)
            if error < best - 1e-9:
                best, weights = error, [0.0, 0.0, 0.0]
                for k, weight in zip(form, found, strict=True):
                    weights[k] = weight / longest**k
        return weights[0], weights[1], weights[2]


def at_length(costs: Measurement, length: int, curve: Curve | None = None) -> Measurement:
    """What the sub-model costs at that length of the input; as it is where no lengths were measured.

    The energy grows as the mean latency does. The memory stays that of the longest input: a session keeps what that took. What
    was not measured at that very length is marked as predicted. `curve`: that of its lengths, where it is at hand.
    """
    if not costs.lengths:
        return costs
    curve = curve or Curve(costs.lengths)
    source: dict[Figure, Source] = dict(costs.source)
    if length not in costs.lengths:
        source["latency_ms"] = "predicted"
    latency = curve.latency(length)
    update: dict[str, object] = {"latency_ms": latency, "source": source}
    if costs.energy_mj is not None and length != curve.lengths[-1]:
        source["energy_mj"] = "predicted"
        update["energy_mj"] = costs.energy_mj * curve.share(length)
    return costs.model_copy(update=update)


def lengths_of(costs: Sequence[Measurement]) -> list[int]:
    """All that some of these were measured at, ascending."""
    return sorted({length for one in costs for length in one.lengths})


def series(longest: int, *, shortest: int = 16, least: int = 3, most: int = 6) -> list[int]:
    """The lengths that are measured where nobody names them, ascending: the longest, its half, and so on down to about the
    shortest; at least and at most so many where there are so many."""
    found = [longest]
    while found[-1] > 1 and len(found) < most and (found[-1] > shortest or len(found) < least):
        found.append(-(-found[-1] // 2))
    return found[::-1]


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Weights of up to three columns whose sums come nearest to 1, by the normal equations; None where these are singular."""
    size = len(rows[0])
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] for row in rows)] for i in range(size)]
    scale = [matrix[i][i] ** 0.5 for i in range(size)]
    for i in range(size):
        matrix[i] = [value / scale[i] / (scale[j] if j < size else 1) for j, value in enumerate(matrix[i])]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-12:
            return None
        for other in range(size):
            if other != i:
                factor = matrix[other][i] / matrix[i][i]
                matrix[other] = [a - factor * b for a, b in zip(matrix[other], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] / scale[i] for i in range(size)]
