"""From the results of the experiments: the figures, the tables, and the plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Result = Mapping[str, Any]
TITLES = {"bbc": "BBC News, 5 classes", "gloss": "WordNet glosses, 26 classes"}
SHOWN = {
    "ours": ("ours: 48 sizes of one training", "#d1495b", "o"),
    "truncated": ("cut from the full model, sorted", "#2e6f9e", "o"),
    "unsorted": ("cut from the full model, as it is", "#9ecae1", "o"),
    "early-exit": ("early exits of the full model", "#e0a030", "s-"),
    "alone-share": ("alone, its share of the updates", "#8a8f98", "D"),
    "alone": ("alone, as many updates as all together", "#111111", "D"),
}
NOTES = {
    "min_retention": "test accuracy of the least accurate of all sub-models and seeds, relative to the full model that was "
    "fine-tuned by itself from the same seed, with as many updates as all sizes together (it is their teacher); "
    "full_accuracy: of that one, mean over seeds",
    "mac_span": "multiply-accumulates of the largest over the smallest sub-model, for the longest texts, head included",
    "gain_over_truncated_mean": "points over the same sizes cut from the sorted full model without training, mean over sizes "
    "and seeds; _depth_min: of the depth where that mean is least",
    "gain_over_early_exit_mean": "points over the early exit at the same depth, mean over all sizes (narrower ones too) and "
    "seeds; _depth_min: of the depth where that mean is least, which is the full one, where the exit is the full model; "
    "gain_over_early_exit_full_width_mean: of the sizes of full width below the full depth, which cost what the exit costs",
    "gap_separate_mean": "points over the same size trained alone with as many updates as the whole nested run had, mean over "
    "the named sizes and seeds; gap_share_mean: with as many updates as that size had in the nested run",
}


class Runs:
    """The results of one task, by method and seed; accuracies on the test split."""

    def __init__(self, results: Iterable[Result], task: str) -> None:
        self.by_method: dict[str, dict[int, Result]] = defaultdict(dict)
        for result in results:
            if result["task"] == task:
                self.by_method[result["method"]][result["seed"]] = result
        first = next((result for runs in self.by_method.values() for result in runs.values()), None)
        self.macs: Mapping[str, int] = first["macs"] if first else {}
        self.submodels = sorted(self.macs, key=lambda name: self.macs[name])

    def seeds(self, *methods: str) -> list[int]:
        return sorted(set.intersection(*(set(self.by_method[method]) for method in methods)))

    def accuracies(
        self, method: str, seeds: Sequence[int], submodels: Sequence[str], kind: str = "accuracy"
    ) -> NDArray[np.float64]:
        """Shape (seeds, sub-models)."""
        return np.array([[self.by_method[method][seed][kind][name] for name in submodels] for seed in seeds])

    def figures(self) -> dict[str, float]:
        """What there are results for. Gains and gaps in points."""
        found: dict[str, float] = {}
        if seeds := self.seeds("ours", "full"):
            reached = self.accuracies("full", seeds, self.submodels[-1:])
            retention = self.accuracies("ours", seeds, self.submodels) / reached
            found = {
                "seeds": len(seeds),
                "submodels": len(self.submodels),
                "mac_span": self.macs[self.submodels[-1]] / self.macs[self.submodels[0]],
                "full_accuracy": float(reached.mean()),
                "min_retention": float(retention.min()),
                "mean_retention": float(retention.mean()),
                "smallest_retention": float(retention[:, 0].mean()),
            }
        if seeds := self.seeds("ours", "truncated"):
            for name, kind in (("truncated", "accuracy"), ("unsorted", "unsorted")):
                gains = self.gains("truncated", seeds, kind=kind)
                found |= {
                    f"gain_over_{name}_mean": float(gains.mean()),
                    f"gain_over_{name}_depth_min": self._of_worst_depth(gains),
                }
        if seeds := self.seeds("ours", "early-exit"):
            gains = self.gains("early-exit", seeds, [self.exit_of(name) for name in self.submodels])
            wide = [name == self.exit_of(name) != self.submodels[-1] for name in self.submodels]
            found["gain_over_early_exit_mean"] = float(gains.mean())
            found["gain_over_early_exit_depth_min"] = self._of_worst_depth(gains)
            found["gain_over_early_exit_full_width_mean"] = float(gains[wide].mean())
        for name, method in (("gap_separate", "alone"), ("gap_share", "alone-share")):
            if seeds := self.seeds("ours", method):
                named = self.named(method)
                gaps = self.gains(method, seeds, named, own=named)
                found |= {f"{name}_mean": float(gaps.mean()), f"{name}_min": float(gaps.min())}
        return found

    def gains(
        self,
        method: str,
        seeds: Sequence[int],
        theirs: Sequence[str] | None = None,
        own: Sequence[str] | None = None,
        kind: str = "accuracy",
    ) -> NDArray[np.float64]:
        """Points of our sizes (default: all) over those of a method (default: the same), (sub-models,), mean over seeds."""
        own = own or self.submodels
        others = self.accuracies(method, seeds, theirs or own, kind)
        return np.asarray(100 * (self.accuracies("ours", seeds, own) - others).mean(axis=0))

    def named(self, method: str) -> list[str]:
        """The sizes that a method was measured at."""
        return sorted(next(iter(self.by_method[method].values()))["accuracy"], key=lambda name: self.macs.get(name, 0))

    def exit_of(self, name: str) -> str:
        """The size of the same depth and full width."""
        same: list[str] = [other for other in self.submodels if _depth(other) == _depth(name)]
        return same[-1]

    def _of_worst_depth(self, gains: NDArray[np.float64]) -> float:
        depths = np.array([_depth(name) for name in self.submodels])
        return min(float(gains[depths == depth].mean()) for depth in set(depths))


def accuracy_rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A row per experiment and sub-model."""
    return [
        {
            "task": result["task"],
            "method": method,
            "seed": result["seed"],
            "submodel": name,
            "macs": result["macs"].get(name, ""),
            "accuracy": accuracy,
        }
        for result in results
        for kind, method in (("accuracy", result["method"]), ("unsorted", "unsorted"))
        for name, accuracy in result.get(kind, {}).items()
    ]


def sorting_table(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A row per task, seed, cut and order."""
    return [row for result in results for row in result["rows"]]


def plot(runs: Mapping[str, Runs], path: Path) -> None:
    """Test accuracy over MACs, a panel for each task that has results; mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    there = {task: of for task, of in runs.items() if of.seeds("ours", "full")}
    if not there:
        return
    figure, axes = plt.subplots(1, len(there), figsize=(6.5 * len(there), 5), layout="constrained", squeeze=False)
    for axis, (task, of) in zip(axes[0], there.items(), strict=True):
        _panel(axis, of)
        axis.set_title(f"all-MiniLM-L6-v2 on {TITLES[task]}")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, runs: Runs) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    reached = 100 * float(runs.accuracies("full", runs.seeds("full"), runs.submodels[-1:]).mean())
    axis.axhline(reached, color="#111111", lw=1, label="the full model alone, as many updates")
    axis.axhline(0.96 * reached, color="#111111", lw=1, ls="--", label="96 % of it: the bar")
    for name, (label, colour, style) in SHOWN.items():
        method, kind = ("truncated", "unsorted") if name == "unsorted" else (name, "accuracy")
        if not (seeds := runs.seeds(method)):
            continue
        sizes = [size for size in runs.named(method) if size in runs.macs]
        found = 100 * runs.accuracies(method, seeds, sizes, kind).mean(axis=0)
        line = "-" if style.endswith("-") else ""
        axis.plot([runs.macs[size] / 1e6 for size in sizes], found, style[0] + line, color=colour, ms=4, lw=1, label=label)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 4, 6)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("million multiply-accumulates per text")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _depth(name: str) -> int:
    """Of `l2-f384-h6`: 2."""
    return int(name.partition("-")[0].removeprefix("l"))
