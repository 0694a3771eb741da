"""What can be learnt from past runs at all: gradient-boosted trees that see more than any policy does.

At every moment they are given what all sizes, not only the chosen one, took before, and are trained on the same scenarios drawn
from other seeds. They say how probable it is that a size will meet the deadline; the largest that is probable enough is taken.
How probable that must be is chosen in hindsight. Those that know the `load` are told besides which processes and quotas are set
at this moment, and for how long: what perfect sensors would say. Not a policy; a measure of how far below the clairvoyant
oracle a policy must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.adapt.record import SEEDS
from benchmarks.adapt.replay import DEADLINES, HIT, TUNING_SEEDS, Sizes, Trace, read_sizes, read_trace
from benchmarks.adapt.scenarios import SCENARIOS

Array = NDArray[np.float64]
ACCURACY = 0.99
LATEST = 6  # moments whose values are given one by one
WINDOWS = (3, 9, 20, 60)
QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)
OWN = 20  # moments of the size itself
PROBABLE = 1 - np.geomspace(0.2, 0.002, 80)

NOTES = {
    "learner_accuracy_vs_oracle.history": f"of trees that learn from other seeds and see what every size took before: accuracy "
    f"where {HIT:g} of the deadlines are met",
    "learner_hit.history": f"the same: deadlines met where the accuracy is {ACCURACY:g} of the oracle's",
    "learner_accuracy_vs_oracle.load": "the same for trees that know the load of the moment too",
}

_Key = tuple[str, int]  # scenario and seed


def measure() -> dict[str, float]:
    sizes = read_sizes()
    traces = {(scenario, seed): read_trace(scenario, seed, sizes) for scenario, seed in product(SCENARIOS, SEEDS)}
    past = {key: history(trace, sizes) for key, trace in traces.items()}
    knowing = {key: np.concatenate([past[key], load(trace, sizes)], axis=2) for key, trace in traces.items()}
    seeing = {"history": past, "load": knowing}
    values: dict[str, float] = {}
    for name, features in seeing.items():
        points = list(frontier(traces, features, sizes))
        values[f"learner_accuracy_vs_oracle.{name}"] = max(accuracy for hits, accuracy in points if hits >= HIT)
        values[f"learner_hit.{name}"] = max(hits for hits, accuracy in points if accuracy >= ACCURACY)
    return values


def history(trace: Trace, sizes: Sizes) -> Array:
    """What was before each moment: slow-downs (logarithms) of all sizes, one by one and in windows, and of the size itself; and
    the size. Shape (T, S, features)."""
    slow = np.log(trace.latencies_ms / sizes.medians)
    rows = []
    for moment in range(len(slow)):
        before = slow[:moment]
        typical = np.median(before, axis=1)
        shared = [*_latest(typical), *_latest(before.max(axis=1, initial=-np.inf))]
        for window in WINDOWS:
            shared.extend(_quantiles(typical[-window:]))
        own = _quantiles(before[-OWN:], axis=0)
        latest = before[-1] if moment else np.full(len(sizes.names), np.nan)
        columns = np.vstack([*own, latest, np.log(sizes.medians)]).T
        rows.append(np.hstack([np.tile(shared, (len(sizes.names), 1)), columns]))
    return np.array(rows)


def load(trace: Trace, sizes: Sizes) -> Array:
    """What perfect sensors would say at each moment. Shape (T, S, 5)."""
    phases = SCENARIOS[trace.scenario](Random(f"{trace.scenario} {trace.seed}"))
    since = [int((trace.phases[:moment] == number).sum()) for moment, number in enumerate(trace.phases)]
    now = [phases[number] for number in trace.phases]
    rows = [(p.spinning, p.copying, p.quota_percent or 100, p.pause_seconds, n) for p, n in zip(now, since, strict=True)]
    return np.repeat(np.array(rows, float)[:, np.newaxis], len(sizes.names), axis=1)


def frontier(traces: Mapping[_Key, Trace], features: Mapping[_Key, Array], sizes: Sizes) -> Iterator[tuple[float, float]]:
    """Deadlines met, and accuracy relative to the oracle's, for every probability that may be asked for: means over the
    scenarios of the seeds that are reported."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    deadlines = [deadline * sizes.tails[-1] for deadline in DEADLINES]
    rows = {key: [_rows(features[key], sizes.medians, limit) for limit in deadlines] for key in traces}
    probabilities: dict[_Key, list[Array]] = {}
    for seed in (seed for seed in SEEDS if seed not in TUNING_SEEDS):
        others = [one for key, found in rows.items() if key[1] != seed for one in found]
        met = [(traces[key].latencies_ms <= limit).ravel() for key in rows if key[1] != seed for limit in deadlines]
        trees = HistGradientBoostingClassifier(
            max_iter=200, learning_rate=0.06, max_leaf_nodes=31, min_samples_leaf=200, random_state=0
        ).fit(np.concatenate(others), np.concatenate(met))
        for key in (key for key in rows if key[1] == seed):
            probabilities[key] = [trees.predict_proba(one)[:, 1].reshape(-1, len(sizes.names)) for one in rows[key]]
    for probable in PROBABLE:
        found = [_outcome(traces, probabilities, scenario, sizes, deadlines, probable) for scenario in SCENARIOS]
        hits, accuracy = np.mean(found, axis=0)
        yield float(hits), float(accuracy)


def _outcome(
    traces: Mapping[_Key, Trace],
    probabilities: Mapping[_Key, Sequence[Array]],
    scenario: str,
    sizes: Sizes,
    deadlines: Sequence[float],
    probable: float,
) -> tuple[float, float]:
    """Of one scenario, over the moments at which the oracle can meet the deadline."""
    accuracies = np.array(sizes.accuracies)
    hits, ours, best = [], [], []
    for key, found in probabilities.items():
        for limit, chances in zip(deadlines, found, strict=True) if key[0] == scenario else ():
            met = traces[key].latencies_ms <= limit
            enough = chances >= probable
            chosen = np.where(enough.any(axis=1), _last(enough), chances.argmax(axis=1))
            possible = met.any(axis=1)
            hits.append(met[np.arange(len(met)), chosen][possible])
            ours.append(accuracies[chosen][possible])
            best.append(accuracies[_last(met)][possible])
    return float(np.concatenate(hits).mean()), float(np.concatenate(ours).mean() / np.concatenate(best).mean())


def _rows(features: Array, medians: Sequence[float], limit_ms: float) -> Array:
    """One for every moment and size, moments first. Shape (T * S, features)."""
    rows = np.concatenate(
        [features, np.broadcast_to(np.log(limit_ms / np.array(medians))[:, np.newaxis], (*features.shape[:2], 1))], axis=2
    )
    return rows.reshape(-1, rows.shape[2])


def _latest(values: Array) -> list[float]:
    padded = np.concatenate([np.full(LATEST, np.nan), values])
    return list(padded[-LATEST:])


def _quantiles(values: Array, axis: int | None = None) -> Array:
    """Along the axis; NaN where there is nothing yet."""
    if len(values):
        return np.quantile(values, QUANTILES, axis=axis)
    return np.full((len(QUANTILES), *values.shape[1:]), np.nan)


def _last(truths: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The last that is true of each row."""
    return np.asarray(truths.shape[1] - 1 - truths[:, ::-1].argmax(axis=1))
