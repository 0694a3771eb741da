"""`Selector`: budget to sub-model. Pure, no I/O; what can be sorted is sorted once, a query is a bisection."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from math import inf
from typing import NamedTuple

from device_profiles import PERCENTILES, Measurement, Profile
from selector.choose.battery import Battery, BatteryPolicy, PowerLevel
from selector.choose.budget import Budget, BudgetError, Selection
from selector.choose.cascades import Cascade

_LIMITS = ("latency_ms", "energy_mj", "memory_mb")
_UNITS = {"latency_ms": "ms", "energy_mj": "mJ", "memory_mb": "MB"}


Key = tuple[str, str]
"""A sub-model and the profile that it was measured for."""


class Candidate(NamedTuple):
    """A sub-model as the selector sees it; an unknown cost is infinite, so that no limit is met on a guess."""

    submodel: str
    device: str  # the profile that it was measured for
    accuracy: float
    latency_ms: float  # at one percentile
    energy_mj: float
    memory_mb: float

    @property
    def key(self) -> Key:
        return self.submodel, self.device


class Selector:
    """Picks among the sub-models of a profile, or of several: those of one device with other execution providers or numbers
    of threads. Sub-models that another one beats on measured cost and accuracy are dropped when it is built; FLOPs never
    decide. Where the profiles hold cascades (see `with_cascades`), `cascades` says what these are.

    Raises BudgetError when no sub-model of the profiles has a known accuracy.
    """

    def __init__(
        self,
        profiles: Profile | Sequence[Profile],
        accuracies: Mapping[str, float | None],
        *,
        policy: BatteryPolicy | None = None,
        cascades: Iterable[Cascade] = (),
    ) -> None:
        self.policy = policy or BatteryPolicy()
        self._cascades = {cascade.id: cascade for cascade in cascades}
        accuracies = {**accuracies, **{name: cascade.accuracy for name, cascade in self._cascades.items()}}
        measured = [
            (name, profile.device.name, accuracy, costs)
            for profile in ([profiles] if isinstance(profiles, Profile) else profiles)
            for name, costs in profile.submodels.items()
            if (accuracy := accuracies.get(name)) is not None
        ]
        if not measured:
            raise BudgetError("no accuracy is known for any measured sub-model: export with test data")
        self._best_accuracy = max(accuracy for _, _, accuracy, _ in measured)
        self._energy_known = any(costs.energy_mj is not None for *_, costs in measured)
        self.measured = [_candidate(*one, 50) for one in measured]
        """All, at the median latency."""
        self._frontiers = {p: _Frontier([_candidate(*one, p) for one in measured]) for p in PERCENTILES}

    def with_policy(self, policy: BatteryPolicy) -> Selector:
        """The same with another policy."""
        other = copy(self)
        other.policy = policy
        return other

    def afforded_by(self, cost: str, percentile: int = 50) -> tuple[Sequence[float], Sequence[Candidate]]:
        """For `latency_ms` at p50, p90 or p99, `energy_mj` or `memory_mb`: ascending costs and the best that each affords."""
        return self._frontiers[percentile].by_cost[cost]

    def select(
        self,
        budget: Budget,
        battery: Battery | None = None,
        *,
        among: Collection[Key] | None = None,
        slowdown: float = 1.0,
    ) -> Selection:
        """The best sub-model within the budget, of `among` where that is given; `feasible=False` with the nearest of these
        when nothing fits. All latencies are taken `slowdown` times. Never raises."""
        if battery is not None or self.policy.low_power:
            level = self.policy.level(battery)
            if level is not None:
                tries = self.saving(budget, level)
                return first_feasible(tries, budget, level, battery, lambda one: self._select(one, among, slowdown))
        return self._select(budget, among, slowdown)

    def saving(self, budget: Budget, level: PowerLevel) -> list[Budget]:
        """The budgets to try in turn at a level: narrowed by it; without the accuracy that it would keep; as it is."""
        caps = self._caps(budget, level)
        floor = budget.min_accuracy if budget.min_accuracy is not None else level.keep_accuracy * self._best_accuracy
        objective = "latency" if level.objective == "energy" and not self._energy_known else level.objective
        tries = [budget.model_copy(update={**caps, "objective": objective, "min_accuracy": floor})]
        if caps and budget.min_accuracy is None:
            tries.append(budget.model_copy(update=caps))
        if caps or budget.min_accuracy is None:
            tries.append(budget)
        return tries

    def _caps(self, budget: Budget, level: PowerLevel) -> dict[str, float]:
        """Of the level, as limits that are at least as tight as the budget's."""
        shares: dict[str, float | None] = {"latency_ms": level.latency_share}
        name = "energy_mj" if self._energy_known else "latency_ms"
        shares[name] = min((s for s in (shares.get(name), level.energy_share) if s is not None), default=None)
        best = self._frontiers[nearest_percentile(budget.percentile)].order["accuracy"][0]
        caps = {name: share * getattr(best, name) for name, share in shares.items() if share is not None}
        return {name: min(cap, getattr(budget, name) or inf) for name, cap in caps.items() if cap < inf}

    def candidates(self, memory_mb: float | None = None, min_accuracy: float | None = None) -> list[Candidate]:
        """At the median latency, within these limits; all when nothing keeps them."""
        kept = self._frontiers[50].by_latency
        fitting = [c for c in kept if c.memory_mb <= (memory_mb or inf) and c.accuracy >= (min_accuracy or 0.0)]
        return fitting or list(kept)

    def neighbours(self, key: Key) -> list[Key]:
        """The next better and the next worse one on the frontier of accuracy over latency; first the faster."""
        _, candidates = self.afforded_by("latency_ms")
        keys = [candidate.key for candidate in candidates]
        if key not in keys:
            return []
        place = keys.index(key)
        return [keys[i] for i in (place - 1, place + 1) if 0 <= i < len(keys)]

    def _select(self, budget: Budget, among: Collection[Key] | None, slowdown: float) -> Selection:
        frontier = self._frontiers[nearest_percentile(budget.percentile)]
        latency, energy, memory, floor = budget.latency_ms, budget.energy_mj, budget.memory_mb, budget.min_accuracy
        if latency is not None:
            latency /= slowdown
        found: Candidate | None
        if among is None and budget.objective == "accuracy" and floor is None and (latency, energy, memory).count(None) == 2:
            name = "latency_ms" if latency is not None else "energy_mj" if energy is not None else "memory_mb"
            costs, candidates = frontier.by_cost[name]
            place = bisect_right(costs, latency or energy or memory or 0.0)
            found = candidates[place - 1] if place else None
        else:
            found = frontier.first(budget.objective, latency or inf, energy or inf, memory or inf, floor or 0.0, among)
        if found is None:
            return self._nearest(budget, frontier, among, slowdown)
        found = _slowed(found, slowdown)
        return self._selection(found, True, _reason(found, budget))

    def _nearest(self, budget: Budget, frontier: _Frontier, among: Collection[Key] | None, slowdown: float) -> Selection:
        """The sub-model that misses the budget by least, summed over the limits relative to each."""
        allowed = frontier.by_latency
        if among is not None:
            allowed = [c for c in allowed if c.key in among] or allowed
        if budget.latency_ms is not None and budget.energy_mj is budget.memory_mb is budget.min_accuracy is None:
            nearest = _slowed(allowed[0], slowdown)  # the fastest
        else:
            slowed = [_slowed(candidate, slowdown) for candidate in allowed]
            nearest = min(slowed, key=lambda c: (_excess(c, budget), c.latency_ms))
        return self._selection(nearest, False, f"nothing fits: the nearest sub-model has {_misses(nearest, budget)}")

    def _selection(self, candidate: Candidate, feasible: bool, reason: str) -> Selection:
        energy, memory = candidate.energy_mj, candidate.memory_mb
        found = Selection(
            candidate.submodel,
            feasible,
            candidate.accuracy,
            candidate.latency_ms,
            None if energy == inf else energy,
            None if memory == inf else memory,
            reason,
            candidate.device,
        )
        cascade = self._cascades.get(candidate.submodel)
        if cascade is None:
            return found
        stages = (cascade.first, cascade.then)
        return found._replace(reason=f"{reason}; {cascade.words}", stages=stages, threshold=cascade.threshold)


class _Frontier:
    """The candidates at one latency percentile, pruned and sorted once for every kind of query."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        # Each profile by itself: one that is behind on a quiet day may be ahead when the other is slowed down.
        devices = dict.fromkeys(candidate.device for candidate in candidates)
        kept = [c for device in devices for c in _pareto([c for c in candidates if c.device == device])]
        self.by_latency = sorted(kept, key=lambda c: (c.latency_ms, -c.accuracy))
        self.by_cost = {name: _staircase(kept, name) for name in _LIMITS}
        self.order = {
            "accuracy": sorted(kept, key=lambda c: (-c.accuracy, c.latency_ms)),
            "latency": self.by_latency,
            # Where the energy is not known, latency stands in for it.
            "energy": sorted(kept, key=lambda c: (c.energy_mj, c.latency_ms if c.energy_mj == inf else 0.0, -c.accuracy)),
        }

    def first(
        self, objective: str, latency: float, energy: float, memory: float, accuracy: float, among: Collection[Key] | None
    ) -> Candidate | None:
        """The best for the objective that keeps all limits; an infinite limit is none."""
        for candidate in self.order[objective]:
            if (
                candidate.latency_ms <= latency
                and candidate.memory_mb <= memory
                and candidate.energy_mj <= energy
                and candidate.accuracy >= accuracy
                and (among is None or candidate.key in among)
            ):
                return candidate
        return None


def nearest_percentile(asked: float) -> int:
    """The first of those that a profile holds which is not below."""
    return 50 if asked <= 50 else 90 if asked <= 90 else 99


def _candidate(submodel: str, device: str, accuracy: float, costs: Measurement, percentile: int) -> Candidate:
    energy, memory = costs.energy_mj, costs.memory_mb
    latency = getattr(costs.latency_ms, f"p{percentile}")
    return Candidate(submodel, device, accuracy, latency, inf if energy is None else energy, inf if memory is None else memory)


def first_feasible(
    tries: Sequence[Budget], budget: Budget, level: PowerLevel, battery: Battery | None, choose: Callable[[Budget], Selection]
) -> Selection:
    """What `choose` finds for the first of the tries that can be kept, or for the last; and why anything was saved."""
    for one in tries:
        selection = choose(one)
        if selection.feasible:
            break
    if one is budget:
        return selection
    if battery is None or battery.percent >= level.ends_at:
        return selection._replace(reason=f"low-power mode: {selection.reason}")
    discharging = " and discharging" if battery.discharging else ""
    return selection._replace(reason=f"battery at {battery.percent:g} %{discharging}: {selection.reason}")


def _slowed(candidate: Candidate, slowdown: float) -> Candidate:
    return candidate if slowdown == 1.0 else candidate._replace(latency_ms=candidate.latency_ms * slowdown)


def _pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that another one equals or beats in every respect and beats in one."""
    kept: list[tuple[float, float, float, float]] = []
    frontier = []
    rows = sorted((((c.latency_ms, c.energy_mj, c.memory_mb, -c.accuracy), c) for c in candidates), key=lambda row: row[0])
    for row, candidate in rows:  # whatever beats one comes before it
        latency, energy, memory, error = row
        if not any(
            a <= latency and b <= energy and c <= memory and d <= error and k != row for k in kept for a, b, c, d in [k]
        ):
            kept.append(row)
            frontier.append(candidate)
    return frontier


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
