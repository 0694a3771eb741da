"""`Selector`: budget to sub-model. Pure, no I/O; what can be sorted is sorted once, a query is a bisection."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from math import inf

from device_profiles import PERCENTILES, Profile
from device_profiles.lengths import bucket
from selector.choose.battery import Battery, BatteryPolicy, PowerLevel
from selector.choose.budget import ACCURACY, BEST, Budget, BudgetError, Selection, not_a_budget
from selector.choose.candidates import Candidate, Candidates, Key, pareto, staircase
from selector.choose.metrics import metric_name
from selector.choose.reasons import LIMITS, excess, misses, reason
from selector.choose.saving import first_feasible, narrowed

LENGTHS = 32
"""Lengths of the input whose candidates are kept: some 0.1 MB each for a bundle of 160 sub-models."""


class Selector:
    """Picks among candidates: the sub-models and cascades of a profile, or of several, those of one device with other execution
    providers or numbers of threads. What another one beats on measured cost and quality is dropped when it is built; FLOPs
    never decide. `Selector(profiles, qualities)` is short for the sub-models of these profiles, by qualities of the name.

    Raises BudgetError when of nothing that was measured the quality is known.
    """

    _at = "whatever the length, because inputs of one only were measured"
    _lasts = False

    def __init__(
        self,
        candidates: Candidates | Profile | Sequence[Profile],
        qualities: Mapping[str, float | None] | None = None,
        *,
        policy: BatteryPolicy | None = None,
    ) -> None:
        if not isinstance(candidates, Candidates):
            profiles = [candidates] if isinstance(candidates, Profile) else candidates
            candidates = Candidates.measured(profiles, qualities or {})
        if not candidates:
            raise BudgetError(f"no {metric_name(candidates.metric)} is known for any measured sub-model: export with test data")
        self.policy = policy or BatteryPolicy()
        self.offered, self.metric = candidates, candidates.metric
        self._best_quality = max(offer.quality for offer in candidates)
        self._cascades = {offer.submodel: offer for offer in candidates if offer.stages}
        self.measured = candidates.at(50)
        """All, at the median latency."""
        self._frontiers = {p: _Frontier(candidates.at(p)) for p in PERCENTILES}
        self._saving: tuple[Budget, PowerLevel, list[Budget]] | None = None  # the latest
        self._in_steady_work: Selector | None = None
        self._at_lengths: dict[object, Selector] = {}  # by the bucket that a length falls into, or those of prompt and context

    def with_policy(self, policy: BatteryPolicy) -> Selector:
        """The same with another policy."""
        other = copy(self)
        other.policy, other._at_lengths, other._in_steady_work = policy, {}, None
        return other

    @property
    def sustained(self) -> Selector:
        """The one for work that lasts longer than a minute: by what all candidates cost then. Itself where no profile says it.
        Built once and kept."""
        if self._lasts or not self.offered.lasting:
            return self
        if self._in_steady_work is None:
            self._in_steady_work = _Lasting(self.offered.sustained(), policy=self.policy)
        return self._in_steady_work

    def at_length(self, length: int | None) -> Selector:
        """The one for inputs of that length: by what all candidates cost at it, rounded up by an eighth at most
        (`device_profiles.lengths.bucket`). Itself where the profile knows no lengths, or for None. Built once and kept."""
        if length is None or not self.offered.lengths:
            return self
        end = bucket(length)
        return self._kept(end, lambda: _There(self, self.offered.at_length(end), f"for inputs of up to {end}"))

    def at_tokens(self, prompt: int | None, context: int | None) -> Selector:
        """The one for prompts and contexts of so many tokens, likewise; None: the longest measured. Itself where no text is
        generated."""
        if (prompt is None and context is None) or not self.offered.contexts:
            return self
        ends = tuple(None if tokens is None else bucket(tokens) for tokens in (prompt, context))
        words = [f"a {what} of up to {end}" for what, end in zip(("prompt", "context"), ends, strict=True) if end]
        return self._kept(ends, lambda: _There(self, self.offered.at_tokens(*ends), f"for {' and '.join(words)} tokens"))

    def at(self, budget: Budget) -> Selector:
        """The one for inputs, or prompts and contexts, as long as the budget says, and for work as long as it says."""
        if budget.lasts and (lasting := self.sustained) is not self:
            return lasting.at(budget)
        if budget.prompt_tokens is None and budget.context is None:
            return self.at_length(budget.length)
        return self.at_tokens(budget.prompt_tokens, budget.context)

    def _kept(self, key: object, make: Callable[[], Selector]) -> Selector:
        found = self._at_lengths.get(key)
        if found is None:
            kept = dict(list(self._at_lengths.items())[1 - LENGTHS :])  # without the oldest; other threads go on with theirs
            found = kept[key] = make()
            self._at_lengths = kept
        return found

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
        when nothing fits. All latencies are taken `slowdown` times. Raises BudgetError for a budget that speaks of accuracy
        where the metric is another, or of tokens where no text is generated."""
        if not isinstance(budget, Budget):
            raise BudgetError(not_a_budget(budget))
        if (there := self.at(budget)) is not self:
            return there.select(budget, battery, among=among, slowdown=slowdown)
        self.check(budget)
        if battery is not None and not isinstance(battery, Battery):
            raise BudgetError(f"battery = {battery!r}: allowed is a Battery, such as Battery(percent=15, discharging=True)")
        if battery is not None or self.policy.low_power:
            level = self.policy.level(battery)
            if level is not None:
                return self.saved(budget, level, battery, lambda one: self._select(one, among, slowdown))
        return self._select(budget, among, slowdown)

    def check(self, budget: Budget) -> None:
        """Raises BudgetError where the budget speaks of accuracy and the metric here is another, or of tokens, and no
        profile here knows what one takes."""
        if self.metric != ACCURACY:
            budget.check(self.metric)
        name = budget.of_tokens
        if name is not None and not self.offered.contexts:
            why = "the profile says nothing of generating text"
            raise BudgetError(f"{name} = {getattr(budget, name):g}: {why}; allowed are latency_ms and length")

    def saving(self, budget: Budget, level: PowerLevel) -> list[Budget]:
        """The budgets to try in turn at a level: narrowed by it; without the quality that it would keep; as it is. The same
        objects for the same budget and level, one after the other."""
        kept = self._saving
        if kept is None or kept[0] is not budget or kept[1] is not level:
            ranked = self._frontiers[nearest_percentile(budget.percentile)].order["quality"]
            kept = self._saving = (budget, level, narrowed(budget, level, ranked, self._best_quality))
        return kept[2]

    def saved(
        self, budget: Budget, level: PowerLevel, battery: Battery | None, choose: Callable[[Budget], Selection]
    ) -> Selection:
        """What `choose` finds at a level of the battery policy, and why anything was saved."""
        return first_feasible(self.saving(budget, level), budget, level, battery, choose)

    def candidates(self, memory_mb: float | None = None, min_quality: float | None = None) -> list[Candidate]:
        """At the median latency, within these limits; all when nothing keeps them."""
        kept = self._frontiers[50].by_latency
        fitting = [c for c in kept if c.memory_mb <= (memory_mb or inf) and c.quality >= (min_quality or 0.0)]
        return fitting or list(kept)

    def neighbours(self, key: Key) -> list[Key]:
        """The next better and the next worse one on the frontier of quality over latency; first the faster."""
        _, candidates = self.afforded_by("latency_ms")
        keys = [candidate.key for candidate in candidates]
        if key not in keys:
            return []
        place = keys.index(key)
        return [keys[i] for i in (place - 1, place + 1) if 0 <= i < len(keys)]

    def _select(self, budget: Budget, among: Collection[Key] | None, slowdown: float) -> Selection:
        frontier = self._frontiers[nearest_percentile(budget.percentile)]
        latency, energy, memory, floor = budget.latency_ms, budget.energy_mj, budget.memory_mb, budget.min_quality
        first = budget.first_token_ms
        if budget.token_ms is not None:
            latency = budget.run_ms
        if floor is None:
            floor = budget.min_accuracy
        if latency is not None:
            latency /= slowdown
        if first is not None:
            first /= slowdown
        found: Candidate | None
        limits = (latency, energy, memory).count(None)
        if among is None and floor is None and first is None and budget.objective in BEST and limits == 2:
            name = "latency_ms" if latency is not None else "energy_mj" if energy is not None else "memory_mb"
            costs, candidates = frontier.by_cost[name]
            place = bisect_right(costs, latency or energy or memory or 0.0)
            found = candidates[place - 1] if place else None
        else:
            costs_of = latency or inf, energy or inf, memory or inf, first or inf
            found = frontier.first(budget.objective, *costs_of, floor or 0.0, among)
        if found is None:
            return self._nearest(budget, frontier, among, slowdown)
        found = _slowed(found, slowdown)
        return self._selection(found, True, self._told(reason(found, budget, self.metric), budget))

    def _nearest(self, budget: Budget, frontier: _Frontier, among: Collection[Key] | None, slowdown: float) -> Selection:
        """The sub-model that misses the budget by least, summed over the limits relative to each."""
        allowed = frontier.by_latency
        if among is not None:
            allowed = [c for c in allowed if c.key in among] or allowed
        alone = budget.energy_mj is budget.memory_mb is budget.floor is budget.first_token_ms is None
        if budget.run_ms is not None and alone:
            nearest = _slowed(allowed[0], slowdown)  # the fastest
        else:
            slowed = [_slowed(candidate, slowdown) for candidate in allowed]
            nearest = min(slowed, key=lambda c: (excess(c, budget), c.latency_ms))
        missed = self._told(misses(nearest, budget, self.metric), budget)
        return self._selection(nearest, False, f"nothing fits: the nearest sub-model has {missed}")

    def _told(self, why: str, budget: Budget) -> str:
        """With what the figures are of, where the budget says what they should be of."""
        if _says_how_long(budget):
            why = f"{why}, {self._at}"
        if self._lasts:
            return f"{why}, in steady work"
        return (
            f"{why}, in the first minute: nothing longer was measured (sortednet profile --sustain)"
            if budget.sustained
            else why
        )

    def _selection(self, candidate: Candidate, feasible: bool, why: str) -> Selection:
        energy, memory = candidate.energy_mj, candidate.memory_mb
        found = Selection(
            candidate.submodel,
            feasible,
            candidate.quality,
            candidate.latency_ms,
            None if energy == inf else energy,
            None if memory == inf else memory,
            why,
            candidate.device,
            self.metric,
            first_token_ms=None if candidate.first_token_ms == inf else candidate.first_token_ms,
        )
        cascade = self._cascades.get(candidate.submodel)
        if cascade is None:
            return found
        return found._replace(reason=f"{why}; {cascade.words}", stages=cascade.stages, threshold=cascade.threshold)


class _Lasting(Selector):
    """Of steady work."""

    _lasts = True


class _There(Selector):
    """Of inputs of one length, or of prompts and contexts of so many tokens."""

    def __init__(self, selector: Selector, offered: Candidates, at: str) -> None:
        super().__init__(offered, policy=selector.policy)
        self._at, self._lasts = at, selector._lasts

    @property
    def sustained(self) -> Selector:
        return self

    def at_length(self, length: int | None) -> Selector:
        return self

    def at_tokens(self, prompt: int | None, context: int | None) -> Selector:
        return self


class _Frontier:
    """The candidates at one latency percentile, pruned and sorted once for every kind of query."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        # Each profile by itself: one that is behind on a quiet day may be ahead when the other is slowed down.
        devices = dict.fromkeys(candidate.device for candidate in candidates)
        kept = [c for device in devices for c in pareto([c for c in candidates if c.device == device])]
        self.by_latency = sorted(kept, key=lambda c: (c.latency_ms, -c.quality))
        self.by_cost = {name: staircase(kept, name) for name in LIMITS}
        best = sorted(kept, key=lambda c: (-c.quality, c.latency_ms))
        self.order = {
            "quality": best,
            "accuracy": best,
            "latency": self.by_latency,
            # Where the energy is not known, latency stands in for it.
            "energy": sorted(kept, key=lambda c: (c.energy_mj, c.latency_ms if c.energy_mj == inf else 0.0, -c.quality)),
        }

    def first(
        self,
        objective: str,
        latency: float,
        energy: float,
        memory: float,
        first_token: float,
        quality: float,
        among: Collection[Key] | None,
    ) -> Candidate | None:
        """The best for the objective that keeps all limits; an infinite limit is none."""
        for candidate in self.order[objective]:
            if (
                candidate.latency_ms <= latency
                and candidate.memory_mb <= memory
                and candidate.energy_mj <= energy
                and candidate.first_token_ms <= first_token
                and candidate.quality >= quality
                and (among is None or candidate.key in among)
            ):
                return candidate
        return None


def nearest_percentile(asked: float) -> int:
    """The first of those that a profile holds which is not below."""
    return 50 if asked <= 50 else 90 if asked <= 90 else 99


def _slowed(candidate: Candidate, slowdown: float) -> Candidate:
    if slowdown == 1.0:
        return candidate
    return candidate._replace(latency_ms=candidate.latency_ms * slowdown, first_token_ms=candidate.first_token_ms * slowdown)


def _says_how_long(budget: Budget) -> bool:
    return budget.length is not None or budget.prompt_tokens is not None or budget.context is not None
