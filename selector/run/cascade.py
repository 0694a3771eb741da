"""Cascades: a small sub-model answers when it is sure, a larger one when it is not.

How sure it is: the margin between its two largest softmax probabilities (Scheffer et al. 2001, "Active hidden Markov models
for information extraction", section 4), which saves a few per cent more than the largest alone: where two classes are alike,
it sees it.

It is calibrated so that the accuracy stays above a floor with a stated confidence (Laufer-Goldshtein et al. 2023, "Efficiently
Controlling Multiple Risks with Pareto Testing", section 4): a third of the validation data finds the frontier of cost and
accuracy of all pairs and thresholds; along it, from the most accurate to the cheapest, the rest of the data tests one after the
other until the exact binomial bound falls below the floor. A fixed sequence needs no correction for how many are tested.

`selector.choose.cascades` keeps them in the bundle and says what they cost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Bundle
from exporter.bundle.session import open_session
from selector.choose.budget import BudgetError
from selector.choose.cascades import Cascade

_THRESHOLDS = 200
_FEW = 32  # classes: up to so many, adding up in Python costs less than calling numpy
Logits = NDArray[np.float32]


class Runs(Protocol):
    """What `Runtime` needs of a session."""

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]: ...


class CascadeSession:
    """The sessions of both sub-models as one, for any number of threads; of a batch only the examples that are not sure go to
    the larger one. The first output has the logits."""

    def __init__(self, cascade: Cascade, first: Runs, then: Runs) -> None:
        self.cascade, self.first, self.then = cascade, first, then

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """The outputs, in the order of `names`."""
        return self.timed(names, feed)[0]

    def timed(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> tuple[Sequence[NDArray[Any]], float]:
        """The outputs, and how long the first sub-model took (ms): that does not depend on what the examples are."""
        begun = time.perf_counter()
        values = self.first.run(names, feed)
        first_ms = (time.perf_counter() - begun) * 1e3
        return self._answered(names, feed, values), first_ms

    def _answered(
        self, names: Sequence[str], feed: Mapping[str, NDArray[Any]], values: Sequence[NDArray[Any]]
    ) -> Sequence[NDArray[Any]]:
        if len(values[0]) == 1:  # most calls on a device: 1 instead of 8 us
            sure = margin_of(values[0][0]) >= self.cascade.threshold
            return values if sure else self.then.run(names, feed)
        passed = passed_on(self.cascade, values[0])
        if passed.all():
            return self.then.run(names, feed)
        if passed.any():
            better = self.then.run(names, {name: array[passed] for name, array in feed.items()})
            values = [value.copy() for value in values]
            for value, part in zip(values, better, strict=True):
                value[passed] = part
        return values


def passed_on(cascade: Cascade, logits: Logits) -> NDArray[np.bool_]:
    """For each example whether the larger sub-model is asked; where a logit is NaN it is. Shape (N, classes) to (N,)."""
    return ~(margins(logits) >= cascade.threshold)


@np.errstate(invalid="ignore")
def margins(logits: Logits) -> NDArray[np.float64]:
    """The largest less the second largest softmax probability of each example; NaN where a logit is NaN or the largest is
    infinite. Shape (N, classes) to (N,)."""
    exact = logits.astype(np.float64)
    highest = np.partition(exact, -2, axis=1)
    powers = np.exp(exact - highest[:, -1:])
    return np.asarray((1.0 - np.exp(highest[:, -2] - highest[:, -1])) / powers.sum(axis=1))


def margin_of(logits: Logits) -> float:
    """The same of one example. Shape (classes,)."""
    if logits.shape[0] > _FEW:
        return float(margins(logits[np.newaxis])[0])
    values = sorted(logits.tolist())
    largest, total = values[-1], 0.0
    for value in values:
        total += exp(value - largest)
    return (1.0 - exp(values[-2] - largest)) / total


def split(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of n validation examples those that choose the sub-models, a third, and those that certify the threshold."""
    order = np.random.default_rng(0).permutation(n)
    return order[: n // 3], order[n // 3 :]


def find_cascade(
    logits: Mapping[str, Logits], labels: NDArray[np.int64], costs: Mapping[str, float], floor: float, confidence: float
) -> Cascade:
    """The pair of least expected cost that keeps the floor, certified. `logits` by sub-model, shape (N, classes).

    Raises BudgetError when no sub-model can be certified for that floor with so many examples.
    """
    if not 0 < floor < 1 or not 0 < confidence < 1:
        raise BudgetError(f"floor = {floor}, confidence = {confidence}: allowed are values between 0 and 1")
    if narrow := [name for name, found in logits.items() if found.ndim != 2 or found.shape[1] < 2]:
        raise BudgetError(
            f"logits of {narrow[0]}: shape {logits[narrow[0]].shape}; allowed is (N, classes), of two classes or more"
        )
    choosing, certifying = split(len(labels))
    right = {name: found.argmax(axis=1) == labels for name, found in logits.items()}
    sure = {name: margins(found) for name, found in logits.items()}
    needed = _least_right(len(certifying), floor, confidence)
    kept: Cascade | None = None
    chosen_sure, chosen_right = ({n: v[choosing] for n, v in sure.items()}, {n: v[choosing] for n, v in right.items()})
    for first, then, threshold in frontier(costs, chosen_sure, chosen_right):
        answered = sure[first][certifying] >= threshold
        count = int(np.where(answered, right[first][certifying], right[then][certifying]).sum())
        if count < needed:
            break
        kept = Cascade(
            id=f"{first}+{then}+{floor:g}",
            first=first,
            then=then,
            threshold=threshold,
            escalation=float(1 - answered.mean()),
            accuracy=count / len(certifying),
            floor=floor,
            confidence=confidence,
            examples=len(certifying),
        )
    if kept is not None:
        return kept
    raise BudgetError(
        f"floor = {floor:g}: no pair keeps it with a confidence of {confidence:g} on {len(certifying)} validation examples; "
        "allowed is a lower floor, a lower confidence, or more examples"
    )


def frontier(
    costs: Mapping[str, float], sure: Mapping[str, NDArray[np.float64]], right: Mapping[str, NDArray[np.bool_]]
) -> list[tuple[str, str, float]]:
    """Pairs and thresholds on the frontier of expected cost and accuracy, from the most accurate to the cheapest."""
    names = sorted(costs, key=lambda name: costs[name])
    levels: dict[str, NDArray[np.float64]] = {}
    found: list[tuple[float, int, str, str, float]] = []
    for place, first in enumerate(names[:-1]):
        levels[first] = np.minimum(np.quantile(sure[first], np.linspace(0, 1, _THRESHOLDS + 1)), 1.0)
        order = np.argsort(-sure[first])  # the surest first: the k surest are answered by the smaller one
        k = np.searchsorted(-sure[first][order], -levels[first], side="right")
        for then in names[place + 1 :]:
            gained = np.concatenate([[0], np.cumsum(right[first][order].astype(int) - right[then][order].astype(int))])
            counts = int(right[then].sum()) + gained[k]
            expected = costs[first] + (1 - k / len(order)) * costs[then]
            found += [(*one, first, then, level) for *one, level in zip(expected, counts, levels[first], strict=True)]
    sequence: list[tuple[str, str, float]] = []
    most = -1
    for _, count, first, then, level in sorted(found, key=lambda one: (one[0], -one[1])):
        if count > most:
            most = count
            if sequence and sequence[-1][:2] == (first, then):  # a pair's thresholds in small steps, tested or not on the way
                between = levels[first][(levels[first] > sequence[-1][2]) & (levels[first] < level)]
                sequence += [(first, then, float(step)) for step in between]
            sequence.append((first, then, float(level)))
    return sequence[::-1]


def _least_right(n: int, floor: float, confidence: float) -> int:
    """How many of n must be right for the exact lower bound (Clopper & Pearson 1934) to reach the floor."""
    from scipy.stats import binom  # type: ignore[import-untyped]

    return int(binom.ppf(confidence, n, floor)) + 1


def logits_of(bundle: Bundle, submodel: str, inputs: Mapping[str, NDArray[Any]], batch: int = 256) -> Logits:
    """First output of a sub-model for all inputs. Shape (N, classes)."""
    session = open_session(bundle.graph_path(submodel))
    count = len(next(iter(inputs.values())))
    parts = [
        session.run(None, {name: array[start : start + batch] for name, array in inputs.items()})[0]
        for start in range(0, count, batch)
    ]
    return np.concatenate(parts)
