"""`Selector`: budget to sub-model. Pure, no I/O; what can be sorted is sorted once, a query is a bisection."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import psutil

from device_profiles import Profile, default_device_name
from exporter.bundle import Bundle
from selector.battery import Battery, BatteryPolicy
from selector.budget import Budget, BudgetError, Selection

PERCENTILES = (50, 90, 99)
_LIMITS = ("latency_ms", "energy_mj", "memory_mb")
_UNITS = {"latency_ms": "ms", "energy_mj": "mJ", "memory_mb": "MB"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sub-model as the selector sees it; an unknown cost is infinite, so that no limit is met on a guess."""

    submodel: str
    accuracy: float
    latency_ms: float  # at one percentile
    energy_mj: float
    memory_mb: float


class Selector:
    """Picks among the sub-models of one profile. Sub-models that another one beats on measured cost and accuracy are
    dropped when it is built; FLOPs never decide.

    Raises BudgetError when no sub-model of the profile has a known accuracy.
    """

    def __init__(
        self, profile: Profile, accuracies: Mapping[str, float | None], *, policy: BatteryPolicy | None = None
    ) -> None:
        known = {name: m for name, m in profile.submodels.items() if accuracies.get(name) is not None}
        if not known:
            raise BudgetError("no accuracy is known for any measured sub-model: export with test data")
        self.device = profile.device.name
        self.policy = policy or BatteryPolicy()
        self._accuracies = {name: float(accuracies[name] or 0.0) for name in known}
        self._measured = known
        self._best_accuracy = max(self._accuracies.values())
        self._energy_known = any(m.energy_mj is not None for m in known.values())
        self._frontiers = {p: _Frontier(self._candidates(p)) for p in PERCENTILES}

    def afforded_by(self, cost: str) -> tuple[Sequence[float], Sequence[Candidate]]:
        """For `latency_ms` (p50), `energy_mj` or `memory_mb`: ascending costs and the best that each affords."""
        return self._frontiers[50].by_cost[cost]

    def select(self, budget: Budget, battery: Battery | None = None, *, among: Collection[str] | None = None) -> Selection:
        """The best sub-model within the budget, of `among` where that is given; `feasible=False` with the nearest of all
        when nothing fits. Never raises."""
        if self.policy.is_low(battery):
            assert battery is not None
            saving = self.policy.saving(budget, best_accuracy=self._best_accuracy, energy_known=self._energy_known)
            selection = self._select(saving, among)
            if selection.feasible or budget.min_accuracy is not None:
                return selection._replace(reason=f"battery at {battery.percent:g} % and discharging: {selection.reason}")
        return self._select(budget, among)

    def neighbours(self, submodel: str) -> list[str]:
        """The next better and the next worse one on the frontier of accuracy over latency; first the faster."""
        _, candidates = self.afforded_by("latency_ms")
        names = [candidate.submodel for candidate in candidates]
        if submodel not in names:
            return []
        place = names.index(submodel)
        return [names[i] for i in (place - 1, place + 1) if 0 <= i < len(names)]

    def _select(self, budget: Budget, among: Collection[str] | None) -> Selection:
        percentile = budget.percentile
        frontier = self._frontiers[50 if percentile <= 50 else 90 if percentile <= 90 else 99]
        latency, energy, memory, floor = budget.latency_ms, budget.energy_mj, budget.memory_mb, budget.min_accuracy
        found: Candidate | None
        if among is None and budget.objective == "accuracy" and floor is None and (latency, energy, memory).count(None) == 2:
            name = "latency_ms" if latency is not None else "energy_mj" if energy is not None else "memory_mb"
            costs, candidates = frontier.by_cost[name]
            place = bisect_right(costs, latency or energy or memory or 0.0)
            found = candidates[place - 1] if place else None
        else:
            found = frontier.first(budget.objective, latency or inf, energy or inf, memory or inf, floor or 0.0, among)
        if found is None:
            return self._nearest(budget, frontier)
        return self._selection(found, True, _reason(found, budget))

    def _nearest(self, budget: Budget, frontier: _Frontier) -> Selection:
        """The sub-model that misses the budget by least, summed over the limits relative to each."""
        nearest = min(frontier.by_latency, key=lambda c: (_excess(c, budget), c.latency_ms))
        return self._selection(nearest, False, f"nothing fits: the nearest sub-model has {_misses(nearest, budget)}")

    def _selection(self, candidate: Candidate, feasible: bool, reason: str) -> Selection:
        energy, memory = candidate.energy_mj, candidate.memory_mb
        return Selection(
            candidate.submodel,
            feasible,
            candidate.accuracy,
            candidate.latency_ms,
            None if energy == inf else energy,
            None if memory == inf else memory,
            reason,
            self.device,
        )

    def _candidates(self, percentile: int) -> list[Candidate]:
        return [
            Candidate(
                name,
                self._accuracies[name],
                getattr(m.latency_ms, f"p{percentile}"),
                inf if m.energy_mj is None else m.energy_mj,
                inf if m.memory_mb is None else m.memory_mb,
            )
            for name, m in self._measured.items()
        ]


class _Frontier:
    """The candidates at one latency percentile, pruned and sorted once for every kind of query."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        kept = _pareto(candidates)
        self.by_latency = sorted(kept, key=lambda c: (c.latency_ms, -c.accuracy))
        self.by_cost = {name: _staircase(kept, name) for name in _LIMITS}
        self.order = {
            "accuracy": sorted(kept, key=lambda c: (-c.accuracy, c.latency_ms)),
            "latency": self.by_latency,
            # Where the energy is not known, latency stands in for it.
            "energy": sorted(kept, key=lambda c: (c.energy_mj, c.latency_ms if c.energy_mj == inf else 0.0, -c.accuracy)),
        }

    def first(
        self, objective: str, latency: float, energy: float, memory: float, accuracy: float, among: Collection[str] | None
    ) -> Candidate | None:
        """The best for the objective that keeps all limits; an infinite limit is none."""
        for candidate in self.order[objective]:
            if (
                candidate.latency_ms <= latency
                and candidate.memory_mb <= memory
                and candidate.energy_mj <= energy
                and candidate.accuracy >= accuracy
                and (among is None or candidate.submodel in among)
            ):
                return candidate
        return None


def selector_for(bundle: Bundle, device: str | None = None) -> Selector:
    """A selector for a bundle and a device's profile (see `find_profile`)."""
    return Selector(find_profile(bundle, device), bundle.accuracies)


def find_profile(bundle: Bundle, device: str | None = None) -> Profile:
    """The named device's profile, else this machine's (of several, the one with the most threads), else the only one.

    Raises BundleError for an unknown device, BudgetError when it is not clear which profile is meant.
    """
    if device is not None:
        return bundle.profile(device)
    devices = bundle.devices()
    for threads in range(psutil.cpu_count() or 1, 0, -1):
        if default_device_name(threads) in devices:
            return bundle.profile(default_device_name(threads))
    if len(devices) == 1:
        return bundle.profile(devices[0])
    if not devices:
        raise BudgetError(f"device: no profile in this bundle yet; measure this device with `sortednet profile {bundle.path}`")
    raise BudgetError(f"device: which one? There are profiles of {', '.join(devices)}")


def _pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that another one equals or beats in every respect and beats in one."""
    table = np.array([[c.latency_ms, c.energy_mj, c.memory_mb, -c.accuracy] for c in candidates])
    not_worse = (table[:, None] <= table[None]).all(axis=2)
    better = (table[:, None] < table[None]).any(axis=2)
    beaten = np.asarray((not_worse & better).any(axis=0)).tolist()
    return [c for c, is_beaten in zip(candidates, beaten, strict=True) if not is_beaten]


def _staircase(candidates: Sequence[Candidate], cost: str) -> tuple[list[float], list[Candidate]]:
    """Ascending costs, and the most accurate candidate that each affords."""
    costs: list[float] = []
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (getattr(c, cost), -c.accuracy)):
        if getattr(candidate, cost) < inf and (not best or candidate.accuracy > best[-1].accuracy):
            costs.append(getattr(candidate, cost))
            best.append(candidate)
    return costs, best


def _reason(candidate: Candidate, budget: Budget) -> str:
    parts = []
    if budget.latency_ms is not None:
        parts.append(f"latency {candidate.latency_ms:.4g} of {budget.latency_ms:g} ms")
    if budget.energy_mj is not None:
        parts.append(f"energy {candidate.energy_mj:.4g} of {budget.energy_mj:g} mJ")
    if budget.memory_mb is not None:
        parts.append(f"memory {candidate.memory_mb:.4g} of {budget.memory_mb:g} MB")
    if budget.min_accuracy is not None:
        parts.append(f"accuracy {candidate.accuracy:.4g}, at least {budget.min_accuracy:.4g}")
    wanted = {"accuracy": "most accurate", "energy": "least energy", "latency": "least latency"}[budget.objective]
    if budget.objective == "energy" and candidate.energy_mj == inf:
        wanted = "least latency (energy is not known on this device)"
    return f"{wanted} with {', '.join(parts)}" if parts else f"{wanted} of all"


def _excess(candidate: Candidate, budget: Budget) -> float:
    over = 0.0
    for name in _LIMITS:
        limit = getattr(budget, name)
        if limit is not None:
            over += min(max(0.0, getattr(candidate, name) / limit - 1), 1e9)
    if budget.min_accuracy:
        over += max(0.0, 1 - candidate.accuracy / budget.min_accuracy)
    return over


def _misses(candidate: Candidate, budget: Budget) -> str:
    missed = []
    for name in _LIMITS:
        limit, cost = getattr(budget, name), getattr(candidate, name)
        if limit is not None and cost > limit:
            figure = "unknown" if cost == inf else f"{cost:.4g} {_UNITS[name]}"
            missed.append(f"{name.split('_')[0]} {figure}, limit {limit:g} {_UNITS[name]}")
    if budget.min_accuracy is not None and candidate.accuracy < budget.min_accuracy:
        missed.append(f"accuracy {candidate.accuracy:.4g}, wanted {budget.min_accuracy:.4g}")
    return "; ".join(missed)
