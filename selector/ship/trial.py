"""Whether a new version of a bundle is worse than the one before, and why.

First, before it is put in place: the self-test, the quality of both on the labelled examples in the bundle, and the latency of
sub-models whose networks are others than before. Then, while it is used: `Comparison` is told of runs on either, and says when
there is enough to say.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from exporter.bundle import CANARY_FILE, Bundle, BundleError
from exporter.bundle.refit import same_networks
from selector.ship.runs import Run
from selector.ship.state import Figures
from selector.ship.versions import refuse, tried

if TYPE_CHECKING:
    from numpy.typing import NDArray


class WorseError(BundleError):
    """A new version that is worse than the one before; that one is used as before."""

    exit_code = 1


@dataclass(frozen=True)
class Limits:
    """What is worse. A share of 1.3 and 0.05 tells a version that takes 1.5 times as long, or has 10 points less, from one that
    does not, in as few runs and examples as there are; `sure` keeps runs that scatter, on a busy device, from saying it."""

    slower: float = 1.3  # times the median latency
    points: float = 0.05  # of accuracy on the labelled examples
    missed: float = 0.2  # more of the runs after their deadline
    least: int = 12  # runs on the new version before latencies are compared
    sure: float = 3.0  # standard deviations that the ranks of its runs lie above those before
    runs: int = 50  # after which it stays


def examine(target: Path, old: Bundle, new: Bundle, limits: Limits = Limits(), *, published: str | None = None) -> Figures:
    """The quality of both. Raises WorseError, and remembers why so that this version is not taken again, where the self-test of
    `new` fails, its accuracy on the labelled examples is less than that of `old`, or a network that is another than before is
    slower. `published`: what the service calls it."""
    from exporter.bundle.verify import self_test

    figures = Figures()
    try:
        try:
            self_test(new)
        except BundleError as error:
            raise WorseError(f"the self-test fails: {error}") from None
        figures, examples = _quality(old, new)
        now, before = figures.quality, figures.quality_before
        if now is not None and before is not None and before - now > limits.points:
            said = f"accuracy {now:.3f} on {examples} labelled examples, {before:.3f} before"
            raise WorseError(f"{figures.submodel}: {said}")
        _compare_latency(old, new, limits)
    except WorseError as error:
        refuse(target, tried(new, figures, published), str(error))
        raise WorseError(f"the new version is not taken: {error}") from None
    return figures


@dataclass
class Comparison:
    """Runs on the new version and on the one before, by sub-model. Latencies are compared of sub-models that both have run, and
    of all runs where there is none."""

    limits: Limits = Limits()
    runs: int = 0  # on the new version
    new: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # milliseconds
    old: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _missed: dict[bool, list[bool]] = field(default_factory=lambda: {True: [], False: []})  # by whether it is the new one

    def add(self, run: Run) -> None:
        self.runs += run.new
        if not run.compared:
            return
        name = f"{run.submodel}, first run" if run.first else run.submodel
        (self.new if run.new else self.old)[name].append(run.latency_ms)
        if run.missed is not None:
            self._missed[run.new].append(run.missed)

    @property
    def worse(self) -> str | None:
        """Why the new version is worse; None where it is not, or too few runs were seen to say."""
        limits = self.limits
        for name, now, before in self._medians():
            if now >= limits.slower * before and higher(*self._latencies(name)) >= limits.sure:
                return f"{f'{name}: ' if name else ''}p50 {now:.3g} ms, {now / before:.2f} times that before"
        missed = self._shares()
        sure = missed is not None and higher(self._missed[True], self._missed[False]) >= limits.sure
        if missed is not None and missed[0] - missed[1] > limits.missed and sure:
            return f"{missed[0]:.0%} of the runs miss their deadline, {missed[1]:.0%} before"
        return None

    @property
    def done(self) -> bool:
        """Whether the new version has been watched for long enough."""
        return self.runs >= self.limits.runs

    def figures(self, known: Figures) -> Figures:
        """With what is known of the quality: of the latencies those of the sub-model that got slowest."""
        found: dict[str, Any] = {"runs": self.runs}
        if medians := self._medians():
            name, now, before = max(medians, key=lambda one: one[1] / one[2])
            found |= {"submodel": name or None, "p50_ms": now, "p50_ms_before": before}
        if missed := self._shares():
            found |= {"missed": missed[0], "missed_before": missed[1]}
        return known.model_copy(update=found)

    def _medians(self) -> list[tuple[str, float, float]]:
        """Sub-model, milliseconds now and before, where there are enough of both. Without a name: of all."""
        names = [name for name in self.new if name in self.old] or [""]
        found = [(name, *self._latencies(name)) for name in names]
        return [(name, median(new), median(old)) for name, new, old in found if min(len(new), len(old)) >= self.limits.least]

    def _latencies(self, name: str) -> tuple[list[float], list[float]]:
        """Of a sub-model, or without a name of all, in the new version and in the one before."""
        new, old = ([*chain(*runs.values())] if not name else runs[name] for runs in (self.new, self.old))
        return new, old

    def _shares(self) -> tuple[float, float] | None:
        """Of the runs after their deadline, now and before, where there are enough."""
        found = [self._missed[True], self._missed[False]]
        if min(map(len, found)) < self.limits.least:
            return None
        return sum(found[0]) / len(found[0]), sum(found[1]) / len(found[1])


def higher(new: Sequence[float], old: Sequence[float]) -> float:
    """How many standard deviations the rank sum of `new` lies above that of two samples that are alike (Mann and Whitney 1947,
    with ties). 0 where all values are equal."""
    n, m = len(new), len(old)
    ordered = sorted(old)
    above = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in new) / 2
    ties = sum(count**3 - count for count in Counter([*new, *old]).values())
    variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
    return (above - n * m / 2) / variance**0.5 if variance > 0 else 0.0


def _quality(old: Bundle, new: Bundle) -> tuple[Figures, int]:
    """Accuracy on the labelled examples in either bundle, of the sub-model that loses most, and how many they are. Raises
    WorseError for one that does not run on them."""
    labelled = next((bundle for bundle in (old, new) if CANARY_FILE in bundle.manifest.files), None)
    if labelled is None or any(bundle.manifest.task.kind != "classification" for bundle in (old, new)):
        return Figures(), 0
    inputs, labels = read_canary(labelled)
    found = Figures()
    for name in _few(new, set(old.submodels)):
        try:
            before, now = (accuracy(bundle, name, inputs, labels) for bundle in (old, new))
        except Exception as error:  # ONNX Runtime's own: the inputs of the two may be others
            raise WorseError(f"{name} does not run on the labelled examples: {error}") from None
        if found.quality is None or before - now > (found.quality_before or 0.0) - found.quality:
            found = Figures(submodel=name, quality=now, quality_before=before)
    return found, len(labels)


def _compare_latency(old: Bundle, new: Bundle, limits: Limits) -> None:
    """Raises WorseError where a sub-model is slower, and is so again. Of the same networks the runs on trial will tell."""
    if old.decoder is not None or new.decoder is not None:
        return
    for name in _few(new, set(old.submodels) - same_networks(old.manifest, new.manifest)):
        for _ in range(2):
            before, now = medians(old, new, name)
            if now < limits.slower * before:
                break
        else:
            raise WorseError(f"{name}: p50 {now:.3g} ms, {now / before:.2f} times that before")


def medians(old: Bundle, new: Bundle, submodel: str, runs: int = 15) -> tuple[float, float]:
    """Milliseconds of one run of the sub-model in either bundle, one after the other in turn."""
    from exporter.bundle.session import open_session, run_session

    sessions = [open_session(bundle.graph_path(submodel)) for bundle in (old, new)]
    inputs = [{name: one[:1] for name, one in bundle.selftest_inputs.items()} for bundle in (old, new)]
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 2):
        for session, given, times in zip(sessions, inputs, taken, strict=True):
            begun = time.perf_counter()
            run_session(session, given)
            times.append((time.perf_counter() - begun) * 1000)
    return median(taken[0][2:]), median(taken[1][2:])


def _few(bundle: Bundle, among: Collection[str]) -> list[str]:
    """The smallest of these sub-models, the one in the middle and the largest."""
    by_size = sorted((one for one in bundle.manifest.submodels if one.id in among), key=lambda one: one.macs)
    return list(dict.fromkeys(by_size[place].id for place in (0, len(by_size) // 2, -1))) if by_size else []


def read_canary(bundle: Bundle) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Inputs by name, and the classes. Raises BundleError where they are not what they should be."""
    import numpy as np

    try:
        with np.load(bundle.path / CANARY_FILE, allow_pickle=False) as arrays:
            inputs = {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith("input/")}
            labels = arrays["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{CANARY_FILE}: {error}") from None
    if not inputs or any(len(one) != len(labels) for one in inputs.values()) or not len(labels):
        raise BundleError(f"{CANARY_FILE}: allowed are arrays input/NAME and labels of one length")
    return inputs, labels


def accuracy(bundle: Bundle, submodel: str, inputs: dict[str, NDArray[Any]], labels: NDArray[Any]) -> float:
    """The share of the examples that it gets right."""
    from exporter.bundle.session import open_session, run_session

    session = open_session(bundle.graph_path(submodel))
    right, batch = 0, 64
    for begin in range(0, len(labels), batch):
        outputs = run_session(session, {name: one[begin : begin + batch] for name, one in inputs.items()})
        answers = next(iter(outputs.values())).argmax(axis=-1)
        right += int((answers == labels[begin : begin + batch]).sum())
    return right / len(labels)
