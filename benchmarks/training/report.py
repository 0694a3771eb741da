"""From the results of the experiments: the figures, the tables as CSV, and the plots."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Result = Mapping[str, Any]
LABELS = {
    "ours": "ours",
    "ours-4": "ours, 4 per step: four times the gradients",
    "sorted-1": "sorted, G = 1",
    "sorted-2": "sorted, G = 2",
    "sorted-4": "sorted, G = 4",
    "sandwich": "sandwich",
    "sum-4": "sum over 4 sizes",
    "separate": "trained separately",
    "convert": "ours from the trained full model",
    "convert-1": "the same, half of the gradients",
    "convert-4": "the same, twice the gradients",
    "sorted-total": "sorted, as many gradients in all",
    "sandwich-total": "sandwich, as many gradients in all",
    "random-linear": "random_linear from the trained full model",
    "ats": "ats from the trained full model",
}
COLOURS = {
    "ours": "#d1495b",
    "ours-4": "#f0a8b2",
    "sorted-1": "#9ecae1",
    "sorted-2": "#2e6f9e",
    "sorted-4": "#08306b",
    "sandwich": "#e0a030",
    "sum-4": "#8a8f98",
    "separate": "#111111",
    "convert": "#3a9d6e",
}
SORTED = ("sorted-1", "sorted-2", "sorted-4")
PEERS = ("random-linear", "ats")
SWEEP = {1: "convert-1", 2: "convert", 4: "convert-4"}
"""By how many trainings of the full model the nested training may cost."""
NAMES = {"resnet": "ResNet", "mobilenetv2": "MobileNetV2"}
NOTES = {
    "min_retention": "test accuracy of the least accurate of 160 sub-models and all seeds, relative to the full model that was "
    "trained by itself from the same seed for the same epochs",
    "gap_separate_min": "test accuracy minus that of the same size trained by itself, in points, averaged over the seeds; the "
    "worst of the sizes",
    "gain_over_sorted_mean": "in points, averaged over the seeds; over the best of G = 1, 2 and 4, at as many gradient "
    "computations",
    "four_per_step": "one seed, four sub-models per step: four times the gradients at the epochs of those trained separately",
    "convert.gap_separate_mean": "from the trained full model, the frozen original as teacher: with its own training three "
    "times the gradient computations of that (a teacher's pass counts a third), where seven sizes trained separately take "
    "seven times",
    "convert.full_change": "points of the full size against the original",
    "convert.gain_over_sorted_mean": "over plain `sorted` from random numbers, with as many gradient computations in all",
    "convert.sorted_gain_half_width": "points that sorting brings at half width before any training, over unsorted prefixes",
    "trainer_overhead": "time of 120 whole steps of fit over that of the bare forward and backward of the same sub-models "
    "built alone, same layout, the two taking turns; per_step_ratio in cost.json is the median over the steps",
}


def read_results(folder: Path) -> list[Result]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


class Runs:
    """The results of one setup, by method; accuracies on the test split of the seeds that all methods in question have."""

    def __init__(self, results: Iterable[Result], setup: str) -> None:
        self.by_method: dict[str, dict[int, Result]] = defaultdict(dict)
        for result in results:
            if result["setup"] == setup:
                self.by_method[result["method"]][result["seed"]] = result
        self.complete = all(self.seeds(method) for method in ("ours", "sandwich", "separate", *SORTED))
        self.macs: Mapping[str, int] = next(iter(self.by_method["ours"].values()))["macs"] if self.complete else {}
        self.submodels = sorted(self.macs, key=lambda sub: self.macs[sub])

    def seeds(self, *methods: str) -> list[int]:
        return sorted(set.intersection(*(set(self.by_method[method]) for method in methods)))

    def measured(self, method: str) -> list[str]:
        """The sub-models whose accuracy this method has, in the order of MACs."""
        return [sub for sub in self.submodels if sub in next(iter(self.by_method[method].values()))["accuracy"]["test"]]

    def accuracies(self, method: str, seeds: Sequence[int], submodels: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Shape (seeds, sub-models), in the order of MACs."""
        chosen = submodels or self.submodels
        return np.array([[self.by_method[method][seed]["accuracy"]["test"][sub] for sub in chosen] for seed in seeds])

    def figures(self) -> dict[str, float]:
        """The names of the README's table; accuracies and gaps in points, averaged over the seeds."""
        found: dict[str, float] = {"mac_span": max(self.macs.values()) / min(self.macs.values())}
        found |= self._against_separate("ours")
        found |= self._gain("ours", "sandwich", ["sandwich"])
        found |= self._gain("ours", "sorted", SORTED)
        if self.seeds("ours-4"):
            found |= {f"four_per_step.{name}": value for name, value in self._against_separate("ours-4").items()}
        if self.seeds("convert", "separate"):
            found |= {f"convert.{name}": value for name, value in self._converted().items()}
        return found

    def _converted(self) -> dict[str, float]:
        """What there is of the methods that begin with the trained full model, and of those with as many gradients in all."""
        found = self._against_separate("convert")
        largest, runs = self.submodels[-1], self.by_method["convert"]
        changes = [r["accuracy"]["test"][largest] - next(iter(r["original"]["test"].values())) for r in runs.values()]
        found["full_change"] = 100 * float(np.mean(changes))
        for name, method in (("sorted", "sorted-total"), ("sandwich", "sandwich-total"), *((m, m) for m in PEERS)):
            if self.seeds("convert", method):
                found |= self._gain("convert", name.replace("-", "_"), [method])
        for budget, method in SWEEP.items():
            if self.seeds(method, "separate"):
                found[f"sweep_{budget}.gap_separate_mean"] = self._against_separate(method)["gap_separate_mean"]
        return found

    def _against_separate(self, method: str) -> dict[str, float]:
        """What its sub-models keep of the full model trained by itself, and how far they are from the same sizes alone."""
        seeds, sizes = self.seeds(method, "separate"), self.measured("separate")
        retention = self.accuracies(method, seeds) / self.accuracies("separate", seeds, [self.submodels[-1]])
        gaps = 100 * (self.accuracies(method, seeds, sizes) - self.accuracies("separate", seeds, sizes)).mean(axis=0)
        return {
            "min_retention": float(retention.min()),
            "p5_retention": float(np.percentile(retention, 5)),
            "mean_retention": float(retention.mean()),
            "gap_separate_mean": float(gaps.mean()),
            "gap_separate_min": float(gaps.min()),
            "seeds": len(seeds),
        }

    def _gain(self, own: str, name: str, methods: Sequence[str]) -> dict[str, float]:
        """Of one method over the best of these, in the mean and in the least accuracy of the grid."""
        means, minima = [], []
        for method in methods:
            seeds = self.seeds(own, method)
            ours, theirs = self.accuracies(own, seeds), self.accuracies(method, seeds)
            means.append(100 * float((ours.mean(axis=1) - theirs.mean(axis=1)).mean()))
            minima.append(100 * float((ours.min(axis=1) - theirs.min(axis=1)).mean()))
        return {f"gain_over_{name}_mean": min(means), f"gain_over_{name}_min": min(minima)}

    def table(self) -> list[dict[str, Any]]:
        """A row per method and seed."""
        rows = []
        for method in LABELS:
            for seed, result in sorted(self.by_method[method].items()):
                accuracies = 100 * np.array(list(result["accuracy"]["test"].values()))
                full = 100 * result["accuracy"]["test"][self.submodels[-1]]
                rows.append(
                    {
                        "setup": result["setup"],
                        "method": method,
                        "seed": seed,
                        "epochs": result["options"]["epochs"],
                        "gradient_computations": result["cost"]["gradient_computations"],
                        "total_gradients": result["cost"].get("total_gradients", result["cost"]["gradient_computations"]),
                        "minutes": round(result["cost"]["seconds"] / 60, 1),
                        "sizes": len(accuracies),
                        "mean_accuracy": round(float(accuracies.mean()), 2),
                        "min_accuracy": round(float(accuracies.min()), 2),
                        "full_accuracy": round(float(full), 2),
                    }
                )
        return rows


def sorting_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row per setup, seed and order."""
    return [row for result in results for row in result["rows"]]


def sorting_figures(rows: Sequence[Mapping[str, Any]], criterion: str) -> dict[str, float]:
    """By setup: points on the test split at half width over unsorted prefixes, averaged over the seeds."""
    found = {}
    for setup in NAMES:
        of = {o: [row["test"] for row in rows if (row["setup"], row["order"]) == (setup, o)] for o in ("none", criterion)}
        if of["none"]:
            found[f"{setup}.convert.sorted_gain_half_width"] = float(np.mean(of[criterion]) - np.mean(of["none"]))
    return found


def plot_sweep(runs: Runs, path: Path, title: str) -> None:
    """How far the sizes are from those trained separately, over the gradient computations in all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    alone = next(iter(runs.by_method["separate"].values()))["cost"]["gradient_computations"] / len(runs.measured("separate"))
    for name, methods, colour in (
        ("from the trained full model", SWEEP.values(), COLOURS["convert"]),
        ("from random numbers, SortedNet", ("sorted-1", "sorted-total"), COLOURS["sorted-2"]),
        ("sandwich rule", ("sandwich", "sandwich-total"), COLOURS["sandwich"]),
    ):
        points = []
        for method in methods:
            if runs.seeds(method, "separate"):
                cost = next(iter(runs.by_method[method].values()))["cost"]
                total = cost.get("total_gradients", cost["gradient_computations"]) / alone
                points.append((total, runs._against_separate(method)["gap_separate_mean"]))
        if points:
            axis.plot(*zip(*sorted(points), strict=True), "o-", color=colour, label=name)
    axis.axhline(0, color=COLOURS["separate"], lw=1, label="seven sizes trained separately: 7")
    axis.set_xlabel("gradient computations in all, in trainings of the full model")
    axis.set_ylabel("mean gap to the same sizes alone (points)")
    axis.set_title(title)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ablation_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row per variant, accuracies on the validation split over the sub-models that were measured."""
    rows = []
    for result in results:
        accuracies = 100 * np.array(list(result["accuracy"]["validation"].values()))
        largest = max(result["macs"], key=lambda sub: result["macs"][sub])
        rows.append(
            {
                "variant": result["method"],
                "setup": result["setup"],
                "seed": result["seed"],
                "epochs": result["options"]["epochs"],
                "gradient_computations": result["cost"]["gradient_computations"],
                "mean_accuracy": round(float(accuracies.mean()), 2),
                "min_accuracy": round(float(accuracies.min()), 2),
                "full_accuracy": round(100 * result["accuracy"]["validation"][largest], 2),
            }
        )
    return rows


def accuracy_rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A row per experiment, split and sub-model."""
    return [
        {
            "setup": result["setup"],
            "method": result["method"],
            "seed": result["seed"],
            "split": split,
            "submodel": sub,
            "macs": result["macs"][sub],
            "accuracy": accuracy,
        }
        for result in results
        for split, accuracies in result["accuracy"].items()
        for sub, accuracy in accuracies.items()
    ]


def overheads(path: Path) -> dict[str, float]:
    """Of each setup whose costs have been measured."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    return {setup: document[setup]["overhead"]["ratio"] for setup in NAMES if setup in document}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot(runs: Runs, path: Path, title: str) -> None:
    """Left: accuracy over MACs of every sub-model, averaged over the seeds. Right: how much each keeps of the full model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(3, 2), layout="constrained")
    shown = [m for m in ("sum-4", "sandwich", "sorted-2", "ours", "ours-4", "convert", "separate") if runs.by_method[m]]
    reference = float(runs.accuracies("separate", runs.seeds("separate"), [runs.submodels[-1]]).mean())
    found = {method: runs.accuracies(method, runs.seeds(method), runs.measured(method)).mean(axis=0) for method in shown}
    lowest = min(float(found[method].min()) for method in shown if method != "sum-4") - 0.01
    bins = np.arange(0.90, 1.012, 0.002)
    for method in shown:
        x = [runs.macs[sub] / 1e6 for sub in runs.measured(method)]
        colour, label = COLOURS[method], LABELS[method]
        if found[method].min() < lowest:
            label += f" (down to {found[method].min():.0%}, not shown)"
        if method == "separate":
            left.plot(x, 100 * found[method], "D-", color=colour, ms=6, lw=1, label=label, zorder=5)
            continue
        left.scatter(x, 100 * found[method], s=14, color=colour, alpha=0.85, lw=0, label=label)
        if method != "sum-4":
            right.hist(found[method] / reference, bins, color=colour, alpha=0.6, label=label)
    left.set_xscale("log")
    left.set_xticks([tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if min(x) <= 1.1 * tick <= 1.3 * max(x)])
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter("")
    left.set_ylim(100 * lowest, 100 * reference + 1)
    left.set_xlabel("million multiply-accumulates per image")
    left.set_ylabel("test accuracy (%)")
    left.set_title(title)
    left.grid(alpha=0.25)
    right.axvline(0.96, color="#444444", ls="--", lw=1)
    right.text(0.9605, 0.5, "0.96: the bar", color="#444444", rotation=90, transform=right.get_xaxis_transform())
    right.set_xlim(min(0.955, lowest / reference + 0.007), 1.008)
    right.set_xlabel("accuracy relative to the separately trained full model")
    right.set_ylabel("sub-models")
    right.set_title("what the 160 sub-models keep")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=6)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
