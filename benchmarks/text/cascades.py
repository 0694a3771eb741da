"""What a cascade of encoders saves: certified on the validation split, or on examples that are left where a task has such, then
run text by text on the test split.

Which cascade it is, is decided on those examples alone: of those that could be certified for one floor or another, the
one of least expected cost that is no more than half a point behind the full model on the examples that certify.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.text.bundles import of_task
from benchmarks.text.data import TASKS, further
from benchmarks.text.experiment import data_of
from benchmarks.text.timing import Feed, Figures
from device_profiles import Profile
from exporter.bundle import Bundle
from exporter.bundle.session import SessionOptions
from exporter.scoring import as_feed
from selector import BudgetError, profile_bundle
from selector.choose.cascades import Cascade
from selector.run.calibrating import candidates, find_cascade, logits_of, split
from selector.run.program import Logits, Program, passed_on, program_opener
from sortednet.validation import arrays
from trainer.data.dataset import Examples

POINTS = 0.005  # that may be lost to the full model
STEP, LOWEST = 0.0025, 0.12  # floors from the full model's accuracy down, so far
CONFIDENCE = 0.95
TEXTS = 300  # of the test split that are timed, drawn; accuracies are of all of it
TURNS = 3  # how often each text is timed; the fastest counts
BLOCK = 25  # texts that one of them runs before it is another's turn
RIVALS = 3  # single sub-models measured beside a cascade: those of least cost by the profile that are as accurate

NOTES = {
    "cascade_vs_single": "mean processor time of a text of the test split, batch 1, its own length, 1 thread: the cascade over "
    "the cheapest single sub-model that is at most half a point behind the full one there; the worse of both tasks",
    "cascade_vs_single_chosen_alike": "the same, where that sub-model too is chosen on the examples that the cascade is",
    "cascade_cost_ratio": "the same over the full model; the worse of both tasks",
    "cascade_points": "accuracy on the test split less the full model's, in points; the worse of both tasks",
    "cascade_floor_points": f"the floor that is certified with a confidence of {CONFIDENCE:g}, less the full model's accuracy "
    "on the examples that certify, in points: how low it lies is a matter of how many these are (cascade_certifying)",
    "cascade_found": "share of the tasks with a cascade that is certified and no more than half a point behind the full model",
}
WORST = {"cascade_vs_single": max, "cascade_vs_single_chosen_alike": max, "cascade_cost_ratio": max, "cascade_points": min}


@dataclass(frozen=True)
class Split:
    """Examples of a split for calibration, in batches, and one by one."""

    batches: list[dict[str, NDArray[Any]]]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, examples: Examples, names: list[str]) -> Split:
        batches, labels = arrays(examples, names)
        return cls(batches, labels.astype(np.int64))


def measure() -> Figures:
    figures: Figures = {}
    for task in TASKS:
        figures |= {f"{name}.{task}": value for name, value in of(task).items()}
    return joined(figures, list(TASKS))


def joined(figures: Figures, tasks: Sequence[str]) -> Figures:
    """With the worse of the tasks, where all of them have a cascade."""
    there = {name: [figures[f"{name}.{task}"] for task in tasks if f"{name}.{task}" in figures] for name in WORST}
    worse = {name: WORST[name](values) for name, values in there.items() if len(values) == len(tasks)}
    found = [figures[f"cascade_found.{task}"] for task in tasks]
    return {**worse, "cascade_found": sum(found) / len(found), **figures}


def of(task: str) -> Figures:
    bundle, data = of_task(task).bundle, data_of(task, further(task))
    names = [spec.name for spec in bundle.manifest.inputs]
    full = max(bundle.submodels.values(), key=lambda entry: entry.macs).id
    profile = profile_bundle(bundle, device="cascade", threads=1, repeats=15, show_progress=False)
    validation, test = Split.of(data.validation, names), Split.of(data.test, names)
    logits, costs = candidates(bundle, profile, validation.batches, validation.labels)
    _, certifying = split(len(validation.labels))
    right = logits_of(bundle, full, validation.batches).argmax(axis=1) == validation.labels
    reached = float(right[certifying].mean())
    cascade = chosen(certified(logits, validation.labels, costs, floors(reached)), costs, reached - POINTS)
    if cascade is None:
        return {"cascade_found": 0.0}
    accuracies = {one.id: one.accuracy or 0.0 for one in bundle.manifest.submodels if one.precision == "fp32"}
    after = on(cascade, {n: logits_of(bundle, n, test.batches) for n in (cascade.first, cascade.then)}, test.labels)
    rivals = as_accurate(profile, accuracies, accuracies[full] - POINTS)
    alike = cheapest_alike(logits, validation.labels, costs, reached - POINTS, full)
    means = mean_seconds(bundle, cascade, sorted({*rivals, alike, full}), drawn(data.test, names))
    return {
        "cascade_vs_single": means[cascade.id] / min(means[name] for name in rivals),
        "cascade_vs_single_chosen_alike": means[cascade.id] / means[alike],
        "cascade_cost_ratio": means[cascade.id] / means[full],
        "cascade_points": 100 * (after - accuracies[full]),
        "cascade_floor_points": 100 * (cascade.floor - reached),
        "cascade_certifying": float(cascade.examples),
        "cascade_escalation": cascade.escalation,
        "cascade_found": 1.0,
    }


def floors(reached: float) -> list[float]:
    """From the full model's accuracy down."""
    return [round(reached - k * STEP, 6) for k in range(round(LOWEST / STEP) + 1) if 0 < reached - k * STEP < 1]


def certified(
    logits: Mapping[str, Logits], labels: NDArray[np.int64], costs: Mapping[str, float], tried: Iterable[float]
) -> list[Cascade]:
    """One for every floor that can be kept."""
    found = []
    for floor in tried:
        try:
            found.append(find_cascade(logits, labels, costs, floor, CONFIDENCE))
        except BudgetError:  # too high for so many examples
            continue
    return found


def chosen(cascades: Iterable[Cascade], costs: Mapping[str, float], least: float) -> Cascade | None:
    """The cheapest whose accuracy on the examples that certify is at least so high."""
    good = [cascade for cascade in cascades if cascade.accuracy >= least]
    return min(good, key=lambda one: costs[one.first] + one.escalation * costs[one.then], default=None)


def cheapest_alike(
    logits: Mapping[str, Logits], labels: NDArray[np.int64], costs: Mapping[str, float], least: float, otherwise: str
) -> str:
    """The cheapest single one that is as accurate on the same examples as the cascade has to be."""
    _, certifying = split(len(labels))
    right = {name: (found.argmax(axis=1) == labels)[certifying].mean() for name, found in logits.items()}
    return min((name for name in costs if right[name] >= least), key=lambda name: costs[name], default=otherwise)


def on(cascade: Cascade, logits: Mapping[str, Logits], labels: NDArray[np.int64]) -> float:
    """The cascade's accuracy."""
    first, then = logits[cascade.first], logits[cascade.then]
    answers = np.where(passed_on(cascade, first), then.argmax(axis=1), first.argmax(axis=1))
    return float((answers == labels).mean())


def as_accurate(profile: Profile, accuracies: Mapping[str, float], least: float) -> list[str]:
    """The cheapest single sub-models that are."""
    good = [name for name, accuracy in accuracies.items() if accuracy >= least and name in profile.submodels]
    return sorted(good, key=lambda name: profile.submodels[name].latency_ms.mean)[:RIVALS]


def drawn(examples: Examples, names: list[str]) -> list[Feed]:
    """Single texts of a split, each of its own length."""
    chosen = sorted(random.Random(0).sample(range(len(examples)), min(TEXTS, len(examples))))
    return [as_feed(examples.batch(torch.tensor([place])).inputs, names) for place in chosen]


def mean_seconds(bundle: Bundle, cascade: Cascade, singles: Sequence[str], texts: Sequence[Feed]) -> dict[str, float]:
    """Processor time a text, of each the fastest of its turns; all take turns."""
    opened = program_opener(bundle, SessionOptions(threads=1), False, [cascade])
    contenders: dict[str, Program] = {name: opened(name) for name in [*singles, cascade.id]}
    fastest = {name: np.full(len(texts), np.inf) for name in contenders}
    order, shuffled = list(contenders), random.Random(0)
    for _ in range(TURNS):
        for start in range(0, len(texts), BLOCK):
            shuffled.shuffle(order)
            for name in order:
                contenders[name].run(texts[start])
                for place, text in enumerate(texts[start : start + BLOCK], start):
                    begun = time.thread_time()
                    contenders[name].run(text)
                    fastest[name][place] = min(fastest[name][place], time.thread_time() - begun)
    return {name: float(taken.mean()) for name, taken in fastest.items()}
