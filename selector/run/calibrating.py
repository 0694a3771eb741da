"""Finds a cascade: a small sub-model answers when it is sure, a larger one when it is not. Works on arrays; needs scipy, which
the extra `train` brings, unlike the runtime that uses what was found.

It is calibrated so that the accuracy stays above a floor with a stated confidence (Laufer-Goldshtein et al. 2023, "Efficiently
Controlling Multiple Risks with Pareto Testing", section 4): a third of the validation data finds the frontier of cost and
accuracy of all pairs and thresholds; along it, from the most accurate to the cheapest, the rest of the data tests one after the
other until the exact binomial bound falls below the floor. A fixed sequence needs no correction for how many are tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiles import Measurement, Profile
from device_profiles.lengths import Curve
from exporter.bundle import Bundle
from exporter.bundle.session import open_session
from selector.choose.budget import ACCURACY, BudgetError
from selector.choose.cascades import Cascade, add_cascade, check_cascades
from selector.choose.lengths import LengthAxis
from selector.choose.profiles import find_profile
from selector.run.inputs import check_inputs
from selector.run.opening import of_this_version
from selector.run.program import Feed, Logits, margins

Batches = Feed | Sequence[Feed]
"""Examples: inputs by name, each (N, …); or several such one after the other, as texts are, each as long as its longest one."""

SCREENED = 500
"""Validation examples on which all sub-models are compared."""
LEAST = 3
"""Validation examples: a third of them chooses, the others certify."""
SLACK = 0.005
"""What one may be behind a cheaper one there, and is still looked at: half the standard error of such a difference. More
would take minutes and find hardly anything: neighbours on the frontier make much the same cascade."""


_THRESHOLDS = 200


def calibrate_cascade(
    bundle: Bundle,
    inputs: Batches,
    labels: NDArray[Any],
    *,
    floor: float,
    confidence: float,
    device: str | None = None,
    keep: bool = True,
    overwrite: bool = False,
) -> Cascade:
    """Finds the cheapest pair on the device's frontier that keeps the floor, and with `keep` adds it to the bundle's cascades
    (`selector.choose.cascades.add_cascade`, which also says what `overwrite` does).

    `inputs` and `labels`, one for each example in the order of the inputs, are of a validation split. Raises BudgetError or
    InputError when nothing keeps the floor, the data are not what the bundle takes, its metric is not accuracy, or it could
    not be kept.
    """
    if bundle.metric != ACCURACY:
        raise BudgetError(f"cascade: the metric of this bundle is {bundle.metric}; allowed is accuracy, which a cascade keeps")
    if keep:
        check_cascades(bundle, overwrite=overwrite)
    checked = [check_inputs(bundle, batch) for batch in _batches(inputs)]
    classes = checked_labels(bundle, labels, sum(map(_count, checked)))
    logits, costs = candidates(bundle, find_profile(bundle, device), checked, classes)
    found = find_cascade(logits, classes, costs, floor, confidence)
    if keep:
        add_cascade(bundle, found, overwrite=overwrite)
    return found


def candidates(
    bundle: Bundle, profile: Profile, inputs: Batches, labels: NDArray[np.int64]
) -> tuple[dict[str, Logits], dict[str, float]]:
    """The logits on all validation examples (N, classes), and the mean latencies (ms) over examples as long as theirs, one
    after the other, of the sub-models that are on the frontier of latency and accuracy.

    The frontier is taken on the examples that choose: those that certify must not have had a say in it, and the accuracies in
    the manifest are of the test split. What a few examples show to be well behind is not run on the others.
    """
    choosing, certifying = split(len(labels))
    axis, batches = LengthAxis.of(bundle), _batches(inputs)
    costs = {name: _mean_latency(one, axis, batches) for name, one in profile.submodels.items()}
    order = sorted(costs, key=lambda name: costs[name])
    found: dict[str, Logits] = {}

    def best(names: Sequence[str], examples: NDArray[np.int64], slack: float) -> list[str]:
        """Runs them on these further examples, and keeps those that no cheaper one is more accurate than, by more than
        the slack, on all so far."""
        kept, highest = [], -1.0
        for name in names:
            further = logits_of(bundle, name, batches, examples)
            found[name] = np.concatenate([found[name], further]) if name in found else further
            accuracy = float((found[name].argmax(axis=1) == labels[choosing[: len(found[name])]]).mean())
            if accuracy > highest - slack:
                kept.append(name)
            highest = max(highest, accuracy)
        return kept

    promising = best(order, choosing[:SCREENED], SLACK)
    names = best(promising, choosing[SCREENED:], 0.0) if len(choosing) > SCREENED else promising
    logits = {}
    for name in names:
        rest = logits_of(bundle, name, batches, certifying)
        logits[name] = np.empty((len(labels), rest.shape[1]), np.float32)
        logits[name][choosing], logits[name][certifying] = found[name], rest
    return logits, {name: costs[name] for name in names}


def checked_labels(bundle: Bundle, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The labels of so many examples, (N,). Raises BudgetError naming what is wrong with them."""
    if labels.dtype.kind not in "iu":
        raise BudgetError(f"labels: dtype {labels.dtype}; allowed are whole numbers")
    if labels.shape != (count,):
        raise BudgetError(f"labels: shape {labels.shape}; allowed is ({count},), one for each example")
    if count < LEAST:
        raise BudgetError(f"data: {count} examples; allowed are {LEAST} or more, and few certify nothing")
    classes = bundle.manifest.outputs[0].shape[-1]
    wrong = (labels < 0) | (labels >= classes) if isinstance(classes, int) else labels < 0
    if wrong.any():
        place = int(wrong.argmax())
        allowed = f"0 to {classes - 1}" if isinstance(classes, int) else "numbers from 0"
        raise BudgetError(f"labels: {labels[place]} at position {place}; allowed are {allowed}")
    return labels.astype(np.int64)


def split(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of n validation examples those that choose the sub-models, a third, and those that certify the threshold."""
    order = np.random.default_rng(0).permutation(n)
    return order[: n // 3], order[n // 3 :]


def check_floor(floor: float, confidence: float) -> None:
    """Raises BudgetError where one of them is no share."""
    for name, value in (("floor", floor), ("confidence", confidence)):
        if not 0 < value < 1:
            raise BudgetError(f"{name} = {value}: allowed are values between 0 and 1")


def find_cascade(
    logits: Mapping[str, Logits], labels: NDArray[np.int64], costs: Mapping[str, float], floor: float, confidence: float
) -> Cascade:
    """The pair of least expected cost that keeps the floor, certified. `logits` by sub-model, shape (N, classes).

    Raises BudgetError when no sub-model can be certified for that floor with so many examples.
    """
    check_floor(floor, confidence)
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
            then_accuracy=float(right[then][certifying].mean()),
            first_accuracy=float(right[first][certifying].mean()),
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


def logits_of(
    bundle: Bundle, submodel: str, inputs: Batches, examples: NDArray[np.int64] | None = None, batch: int = 256
) -> Logits:
    """First output of a sub-model for all examples, or for these, in their order. Shape (N, classes)."""
    version = copy(bundle)
    session = of_this_version(bundle, version, submodel, lambda: open_session(version.graph_path(submodel)))
    batches = _batches(inputs)
    ends = np.cumsum([_count(one) for one in batches])
    wanted = np.arange(ends[-1]) if examples is None else examples
    order = np.argsort(wanted, kind="stable")
    places = np.split(order, np.searchsorted(wanted[order], ends[:-1]))  # where the examples of each batch are asked for
    parts = [
        session.run(None, {name: array[wanted[some] - end + _count(one)] for name, array in one.items()})[0]
        for one, end, own in zip(batches, ends, places, strict=True)
        for some in (own[start : start + batch] for start in range(0, len(own), batch))
    ]
    found: Logits = np.empty((len(wanted), *parts[0].shape[1:]), parts[0].dtype)
    found[order] = np.concatenate(parts)
    return found


def _batches(inputs: Batches) -> Sequence[Feed]:
    return [inputs] if isinstance(inputs, Mapping) else inputs


def _count(batch: Feed) -> int:
    return len(next(iter(batch.values())))


def _mean_latency(costs: Measurement, axis: LengthAxis | None, batches: Sequence[Feed]) -> float:
    """Milliseconds an example."""
    if axis is None or not costs.lengths:
        return costs.latency_ms.mean
    curve, counts = Curve(costs.lengths), [_count(batch) for batch in batches]
    took = (count * curve.at(axis.of_feed(batch), "mean") for count, batch in zip(counts, batches, strict=True))
    return sum(took) / sum(counts)
