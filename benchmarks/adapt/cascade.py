"""What a cascade saves: certified on the validation split for several accuracy floors, then run example by example on the
test split, taking turns with the cheapest single sub-model that is as accurate there."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.adapt.bundles import trained
from device_profiles import Profile
from exporter.bundle import Bundle
from exporter.bundle.session import SessionOptions
from selector import BudgetError, profile_bundle
from selector.choose.cascades import Cascade
from selector.run.calibrating import candidates, find_cascade, frontier, logits_of
from selector.run.program import Logits, margins, passed_on, program_opener
from sortednet.validation import validation
from trainer.data import load_data
from trainer.data.dataset import as_inputs

Figures = dict[str, float]
RESULTS = Path(__file__).parent / "results"
DATA = "fashion-mnist"
FLOORS = (0.84, 0.85, 0.86, 0.87, 0.875, 0.88, 0.885)
TOP = 0.87  # from here on accuracy costs: below it there are sub-models of 0.1 ms, of which a third is no computation at all
CONFIDENCE = 0.95
IMAGES = 2000  # of the test split that are timed; accuracies are of all of it
TURNS = 3  # how often each image is timed; the fastest counts, as what others use the processor for is no cost of ours
BLOCK = 50  # images that one of them runs before it is another's turn: a device does not change the sub-model every time
RIVALS = 3  # single sub-models measured beside a cascade: those of least cost by the profile that are as accurate

NOTES = {
    "cascade_cost_ratio": "measured mean latency at batch 1 of the cascade over the cheapest single sub-model with at least "
    "its accuracy on the test split; the median over the floors",
    "cascade_cost_ratio_worst": "the same, the worst floor",
    "cascade_cost_ratio_top": f"the same, the median over the floors from {TOP:g}, where sub-models begin to be expensive",
    "cascade_cost_ratio_hindsight": "the same by the profile, of the cheapest pair and threshold that are as accurate on the "
    "test split itself: what no calibration can beat on this bundle; the median over the floors",
    "cascade_floor_kept": "share of the floors that the cascade's accuracy on the test split is not below",
    "cascade_accuracy_over_floor": "accuracy on the test split less the floor, the least of all floors",
    "cascade_floors": "floors that could be certified on the validation split, of " + ", ".join(f"{f:g}" for f in FLOORS),
}


@dataclass(frozen=True)
class Row:
    """One floor: the cascade, and the single sub-model that it is compared with."""

    floor: float
    first: str
    then: str
    threshold: float
    escalation_validation: float
    escalation_test: float
    accuracy_validation: float
    accuracy_test: float
    expected_ms: float  # by the profile and the validation split
    measured_ms: float
    single: str
    single_accuracy_test: float
    single_ms: float
    hindsight_ratio: float  # by the profile, of the cheapest pair and threshold that are as accurate on the test split

    @property
    def ratio(self) -> float:
        return self.measured_ms / self.single_ms


def measure() -> Figures:
    """Profiles the bundle with one thread, certifies, measures, and writes `cascade.csv` and `cascade.png`."""
    bundle = trained()
    profile = profile_bundle(bundle, device="cascade", threads=1, repeats=15, show_progress=False)
    inputs, labels = validation(bundle, DATA)
    logits, costs = candidates(bundle, profile, inputs, labels)
    cascades = []
    for floor in FLOORS:
        try:
            cascades.append(find_cascade(logits, labels, costs, floor, CONFIDENCE))
        except BudgetError:  # more than this bundle can promise; `cascade_floors` says how many could be
            continue
    if not cascades:
        return {"cascade_floors": 0.0}
    rows = compared(bundle, profile, cascades, costs)
    write(rows)
    draw(rows, profile, bundle, RESULTS / "cascade.png")
    return figures(rows)


def figures(rows: Sequence[Row]) -> Figures:
    ratios = {f"cascade_cost_ratio.{row.floor:g}": row.ratio for row in rows}
    top = [row.ratio for row in rows if row.floor >= TOP]
    over = [row.accuracy_test - row.floor for row in rows]
    return {
        "cascade_cost_ratio": median(ratios.values()),
        "cascade_cost_ratio_worst": max(ratios.values()),
        "cascade_cost_ratio_hindsight": median(row.hindsight_ratio for row in rows),
        **({"cascade_cost_ratio_top": median(top)} if top else {}),
        **ratios,
        "cascade_floor_kept": sum(gap >= 0 for gap in over) / len(rows),
        "cascade_accuracy_over_floor": min(over),
        "cascade_floors": len(rows) / len(FLOORS),
    }


def compared(bundle: Bundle, profile: Profile, cascades: Sequence[Cascade], costs: Mapping[str, float]) -> list[Row]:
    """Accuracies on the whole test split, latencies on a part of it, all contenders taking turns."""
    inputs, labels = test_split(bundle)
    known = {name: logits_of(bundle, name, inputs) for name in costs}
    accuracies, passed = [], []
    for cascade in cascades:
        first, then = known[cascade.first], known[cascade.then]
        asked = passed_on(cascade, first)
        accuracies.append(float((np.where(asked, then.argmax(axis=1), first.argmax(axis=1)) == labels).mean()))
        passed.append(float(asked.mean()))
    rivals = [as_accurate(bundle, profile, accuracy) for accuracy in accuracies]
    means = mean_latencies(bundle, cascades, sorted({name for names in rivals for name in names}), inputs)
    costs_of = {name: measured.latency_ms.mean for name, measured in profile.submodels.items()}
    rows = []
    for cascade, accuracy, escalation, names in zip(cascades, accuracies, passed, rivals, strict=True):
        single = min(names, key=lambda name: means[name])
        first_ms, then_ms = costs_of[cascade.first], costs_of[cascade.then]
        rows.append(
            Row(
                cascade.floor,
                cascade.first,
                cascade.then,
                cascade.threshold,
                cascade.escalation,
                escalation,
                cascade.accuracy,
                accuracy,
                first_ms + cascade.escalation * then_ms,
                means[cascade.id],
                single,
                bundle.accuracies[single] or 0.0,
                means[single],
                in_hindsight(known, labels, costs, accuracy) / min(costs_of[n] for n in names),
            )
        )
    return rows


def in_hindsight(logits: Mapping[str, Logits], labels: NDArray[np.int64], costs: Mapping[str, float], accuracy: float) -> float:
    """What the cheapest pair and threshold cost that are as accurate on these examples."""
    right = {name: found.argmax(axis=1) == labels for name, found in logits.items()}
    sure = {name: margins(found) for name, found in logits.items()}
    fitting = []
    for first, then, threshold in frontier(costs, sure, right):
        asked = sure[first] < threshold
        if np.where(asked, right[then], right[first]).mean() >= accuracy:
            fitting.append(costs[first] + float(asked.mean()) * costs[then])
    return min(fitting, default=float("nan"))


def as_accurate(bundle: Bundle, profile: Profile, accuracy: float) -> list[str]:
    """The cheapest single sub-models that are; where none is, the most accurate, which is then less accurate."""
    known = {name: value for name, value in bundle.accuracies.items() if value is not None and name in profile.submodels}
    names = [name for name, value in known.items() if value >= accuracy] or [max(known, key=lambda name: known[name])]
    return sorted(names, key=lambda name: profile.submodels[name].latency_ms.mean)[:RIVALS]


def mean_latencies(
    bundle: Bundle, cascades: Sequence[Cascade], singles: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Mean latency per example (ms) at batch 1, of each image the fastest of its turns."""
    open_program = program_opener(bundle, SessionOptions(threads=1), False, cascades)
    contenders = {name: open_program(name) for name in [*singles, *(cascade.id for cascade in cascades)]}
    (name,) = inputs
    images = [{name: np.ascontiguousarray(inputs[name][i : i + 1])} for i in range(IMAGES)]
    fastest = {contender: np.full(IMAGES, np.inf) for contender in contenders}
    order, shuffled = list(contenders), random.Random(0)
    for _ in range(TURNS):
        for start in range(0, IMAGES, BLOCK):
            shuffled.shuffle(order)
            for contender in order:
                run, taken = contenders[contender].run, fastest[contender]
                run(images[start])
                for place in range(start, start + BLOCK):
                    begun = time.perf_counter()
                    run(images[place])
                    taken[place] = min(taken[place], time.perf_counter() - begun)
    return {contender: 1e3 * float(taken.mean()) for contender, taken in fastest.items()}


def test_split(bundle: Bundle) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    import torch

    examples = load_data(DATA).test
    batch = examples.batch(torch.arange(len(examples)))
    names = [spec.name for spec in bundle.manifest.inputs]
    assert isinstance(batch.targets, torch.Tensor)
    return {name: array.numpy() for name, array in as_inputs(batch.inputs, names).items()}, batch.targets.numpy()


def write(rows: Sequence[Row]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "cascade.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*Row.__dataclass_fields__, "cost_ratio"])
        for row in rows:
            values = [getattr(row, name) for name in Row.__dataclass_fields__] + [row.ratio]
            table.writerow([round(value, 5) if isinstance(value, float) else value for value in values])


def draw(rows: Sequence[Row], profile: Profile, bundle: Bundle, path: Path) -> None:
    """Accuracy on the test split over mean latency: all sub-models, their frontier, and the cascades."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = sorted((profile.submodels[n].latency_ms.mean, bundle.accuracies[n] or 0.0) for n in profile.submodels)
    best, frontier = 0.0, []
    for cost, accuracy in points:
        if accuracy > best:
            best = accuracy
            frontier.append((cost, accuracy))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(*zip(*points, strict=True), ".", color="0.75", label="sub-models (profile)")
    axes.plot(*zip(*frontier, strict=True), drawstyle="steps-post", color="tab:blue", label="their frontier")
    axes.plot([r.single_ms for r in rows], [r.single_accuracy_test for r in rows], "s", color="tab:blue", label="compared with")
    axes.plot(
        [r.measured_ms for r in rows], [r.accuracy_test for r in rows], "o-", color="tab:orange", label="cascades (measured)"
    )
    for place, row in enumerate(rows):
        text, at = f"floor {row.floor:g}: {row.ratio:.2f}", (row.measured_ms, row.accuracy_test)
        away = (-6, 15 if place % 2 else 4)  # neighbours' texts would lie on each other
        axes.annotate(text, at, away, textcoords="offset points", ha="right", fontsize=8)
    axes.set(xscale="log", xlabel="mean latency per example, batch 1, 1 thread (ms)", ylabel="accuracy, test split")
    axes.set_ylim(bottom=min(row.floor for row in rows) - 0.05)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    for key, value in measure().items():
        print(f"{key:32} {value:.4g}")
