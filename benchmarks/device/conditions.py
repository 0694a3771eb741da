"""The same bundle on this machine under really different conditions: threads, CPU quotas, a competing load.

Quotas are set with control groups (version 1 or 2), which needs root; where that is refused they are left out.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.device.bundles import made
from benchmarks.device.sessions import Figures
from benchmarks.load import SPINNING, Competitors, Quota
from device_profiles import Profile, read_profile
from device_profiles.host import default_device_name, physical_cores
from selector import Budget, Selector

PROFILES = Path(__file__).parents[2] / "device_profiles"
BUDGETS_MS = (0.1, 0.2, 0.4)
Condition = tuple[str, str, int, int | None, bool]  # suffix, label, threads, quota (per cent of one core), load beside it
CONDITIONS: list[Condition] = [
    ("1t", "1 thread, nothing else running", 1, None, False),
    ("2t", "2 threads, nothing else running", 2, None, False),
    ("1t-quota50", "1 thread, a control group that gives half of one core", 1, 50, False),
    ("1t-quota25", "1 thread, a control group that gives a quarter of one core", 1, 25, False),
    ("1t-loaded", "1 thread, beside one busy process per core", 1, None, True),
]


def measure(plot_to: Path) -> Figures:
    """Writes a profile per condition to `device_profiles/`, and the plot."""
    bundle = made("trained")
    base = default_device_name(1).removesuffix("-1t")
    profiles: dict[str, Profile] = {}
    for suffix, label, threads, quota, loaded in CONDITIONS:
        name = f"resnet-160-on-{base}-{suffix}"
        command = [sys.executable, "-m", "sortednet", "profile", str(bundle.path), "--device", name, "--threads", str(threads)]
        command += ["--label", f"{label}. A server's processor, not a phone's.", "--repeats", "100"]
        try:
            with _busy() if loaded else contextlib.nullcontext(), _quota(quota) as joined:
                subprocess.run(command, check=True, preexec_fn=joined, stdout=subprocess.DEVNULL)
        except PermissionError as error:
            print(f"{suffix}: left out, {error}")
            continue
        source = bundle.path / "profiles" / f"{name}.json"
        profiles[suffix] = read_profile(source)
        source.replace(PROFILES / f"{name}.json")
    plot(profiles, bundle.accuracies, plot_to)
    found: Figures = {}
    for suffix, profile in profiles.items():
        latencies = [m.latency_ms for m in profile.submodels.values()]
        found[f"condition_p50_ms.{suffix}"] = float(np.median([latency.p50 for latency in latencies]))
        found[f"condition_p99_ms.{suffix}"] = float(np.median([latency.p99 for latency in latencies]))
        selector = Selector(profile, bundle.accuracies)
        selection = selector.select(Budget(latency_ms=BUDGETS_MS[1], percentile=90))
        found[f"condition_accuracy_in_p90_{BUDGETS_MS[1]:g}_ms.{suffix}"] = (
            selection.accuracy or 0.0 if selection.feasible else float("nan")
        )
    return found


@contextmanager
def _busy() -> Iterator[None]:
    with Competitors(SPINNING, physical_cores()) as competitors:
        competitors.set(physical_cores())
        yield


@contextmanager
def _quota(percent: int | None) -> Iterator[Callable[[], None] | None]:
    """What a child process calls to join the group that gets so much of one core; None without a quota."""
    if percent is None:
        yield None
        return
    with Quota() as quota:
        quota.set(percent)
        yield quota.join


def plot(profiles: dict[str, Profile], accuracies: dict[str, float | None], path: Path) -> None:
    """Left: the frontier at p50 under each condition; right: at p99, which quotas and competitors move."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    colours = ("#2e6f9e", "#9ecae1", "#e0a030", "#d1495b", "#6a4c93")
    labels = {suffix: label for suffix, label, *_ in CONDITIONS}
    for axis, percentile in zip(axes, (50, 99), strict=True):
        for (suffix, profile), colour in zip(profiles.items(), colours, strict=False):
            selector = Selector(profile, accuracies)
            costs, candidates = selector.afforded_by("latency_ms", percentile)
            heights = [100 * candidate.quality for candidate in candidates]
            axis.step(costs, heights, where="post", color=colour, lw=1.5, label=labels[suffix])
            axis.plot(costs, heights, ".", color=colour, ms=5)
            for budget in BUDGETS_MS:
                selection = selector.select(Budget(latency_ms=budget, percentile=percentile))
                if selection.feasible:
                    axis.plot(budget, 100 * (selection.accuracy or 0), "o", mfc="none", color=colour, ms=9)
        for budget in BUDGETS_MS:
            axis.axvline(budget, color="#999999", lw=0.8, ls=":")
        axis.set_xscale("log")
        least, most = axis.get_xlim()
        axis.set_xticks([tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if least < tick < most])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(f"latency at the {'median' if percentile == 50 else '99th percentile'} (ms)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].set_title("the frontier of the same bundle; circles: the choice for 0.1, 0.2 and 0.4 ms", loc="left")
    axes[1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
