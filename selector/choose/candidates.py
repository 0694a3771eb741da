"""`Candidates`: what may be chosen on a device, sub-models and cascades alike, with quality, costs and what each is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

from device_profiles import LatencyMs, Measurement, Profile
from device_profiles.decoding import DecodingCurves, at_tokens, contexts_of, prompts_of
from device_profiles.lengths import Curve, at_length, lengths_of
from device_profiles.sustained import Lasting
from exporter.bundle import Bundle
from selector.choose.budget import ACCURACY, BudgetError
from selector.choose.cascades import Cascade

Key = tuple[str, str]
"""A sub-model or a cascade by its name, and the profile that it was measured for."""


class Candidate(NamedTuple):
    """One at one percentile of its latency; an unknown cost is infinite, so that no limit is met on a guess."""

    submodel: str  # or a cascade's name
    device: str  # the profile that it was measured for
    quality: float
    latency_ms: float
    energy_mj: float
    memory_mb: float
    first_token_ms: float = inf  # where text is generated; latency and energy are those of one token then

    @property
    def key(self) -> Key:
        return self.submodel, self.device


@dataclass(frozen=True, slots=True)
class Offer:
    """One that may be chosen. `stages`, `threshold` and `words` say of a cascade which sub-models it asks and when."""

    submodel: str
    device: str
    quality: float
    costs: Measurement
    stages: tuple[str, ...] = ()
    threshold: float | None = None
    words: str = ""
    lasting: Lasting | None = None  # of the device, where it was kept busy

    @property
    def key(self) -> Key:
        return self.submodel, self.device

    def at(self, percentile: int) -> Candidate:
        """At p50, p90 or p99 of the latency."""
        energy, memory = self.costs.energy_mj, self.costs.memory_mb
        latency = getattr(self.costs.latency_ms, f"p{percentile}")
        known = inf if energy is None else energy, inf if memory is None else memory
        if self.costs.decoding is None:
            return Candidate(self.submodel, self.device, self.quality, latency, *known)
        prefill = self.costs.decoding.prefill
        first = getattr(prefill[max(prefill)], f"p{percentile}")
        return Candidate(self.submodel, self.device, self.quality, latency, *known, first)


@dataclass(frozen=True)
class Candidates:
    """Built once for a bundle, the profiles of one device and the bundle's cascades."""

    offers: tuple[Offer, ...]
    metric: str = ACCURACY  # that the qualities are of

    @classmethod
    def of(cls, bundle: Bundle, profiles: Iterable[Profile], cascades: Iterable[Cascade] = ()) -> Candidates:
        """Every measured sub-model of known quality, and every cascade of which a profile knows both sub-models.

        Raises BudgetError for cascades of a bundle whose metric is not the accuracy that they were certified for.
        """
        return cls.measured(profiles, bundle.qualities, cascades, bundle.metric)

    @classmethod
    def measured(
        cls,
        profiles: Iterable[Profile],
        qualities: Mapping[str, float | None],
        cascades: Iterable[Cascade] = (),
        metric: str = ACCURACY,
    ) -> Candidates:
        """The same without a bundle at hand: `qualities` by sub-model, None where they are not known. Raises BudgetError also
        for two profiles of one name."""
        profiles, cascades = tuple(profiles), tuple(cascades)
        names = [profile.device.name for profile in profiles]
        if len(set(names)) < len(names):
            raise BudgetError(f"profiles: of devices {', '.join(map(repr, names))}; allowed is one of each name")
        if cascades and metric != ACCURACY:
            raise BudgetError(f"cascades: the metric here is {metric}; allowed are bundles of accuracy, which they keep")
        offers: list[Offer] = []
        for profile in profiles:
            device, costs = profile.device.name, profile.submodels
            lasting = None if profile.sustained is None else Lasting.of(profile.sustained)
            known = [(name, quality) for name in costs if (quality := qualities.get(name)) is not None]
            offers += [Offer(name, device, quality, costs[name], lasting=lasting) for name, quality in known]
            for one in cascades:
                if one.first in costs and one.then in costs:
                    expected = _expected(costs[one.first], costs[one.then], one.escalation)
                    stages = one.first, one.then
                    quality, words = one.quality(qualities), one.words
                    offers.append(Offer(one.id, device, quality, expected, stages, one.threshold, words, lasting))
        return cls(tuple(offers), metric)

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers)

    def __len__(self) -> int:
        return len(self.offers)

    def among(self, keys: Collection[Key]) -> Candidates:
        """Those of these keys."""
        return Candidates(tuple(offer for offer in self.offers if offer.key in keys), self.metric)

    @cached_property
    def lengths(self) -> list[int]:
        """Of the input, at which some of these were measured, ascending; none where inputs have one size."""
        return lengths_of([offer.costs for offer in self.offers])

    @cached_property
    def curves(self) -> dict[Key, Curve]:
        """The latency over the length, or of a token over the context, of those that were measured so."""
        return {offer.key: Curve(found) for offer in self.offers if (found := offer.costs.by_length)}

    @cached_property
    def prompts(self) -> list[int]:
        """Tokens of the prompts that some of these were measured at, ascending; none where no text is generated."""
        return prompts_of(offer.costs for offer in self.offers)

    @cached_property
    def contexts(self) -> list[int]:
        """Likewise of what is before a token."""
        return contexts_of(offer.costs for offer in self.offers)

    @cached_property
    def decoding(self) -> dict[Key, DecodingCurves]:
        """Of those whose decoding was measured."""
        return {offer.key: DecodingCurves(found) for offer in self.offers if (found := offer.costs.decoding)}

    def at_tokens(self, prompt: int | None, context: int | None) -> Candidates:
        """The same with what they cost for a prompt and in a context of so many tokens; None: the longest measured."""
        curves = self.decoding
        offers = (replace(one, costs=at_tokens(one.costs, prompt, context, curves.get(one.key))) for one in self.offers)
        return Candidates(tuple(offers), self.metric)

    def at_length(self, length: int) -> Candidates:
        """The same with what they cost for an input of that length."""
        curves = self.curves
        offers = (replace(one, costs=at_length(one.costs, length, curves.get(one.key))) for one in self.offers)
        return Candidates(tuple(offers), self.metric)

    @cached_property
    def lasting(self) -> dict[str, Lasting]:
        """By device what steady work takes more, of those that were kept busy."""
        return {offer.device: offer.lasting for offer in self.offers if offer.lasting is not None}

    def sustained(self) -> Candidates:
        """The same with what they cost in steady work; as they are where the device was not kept busy."""
        offers = (one if one.lasting is None else replace(one, costs=one.lasting.costs(one.costs)) for one in self.offers)
        return Candidates(tuple(offers), self.metric)

    def at(self, percentile: int) -> list[Candidate]:
        """All at p50, p90 or p99 of their latency."""
        return [offer.at(percentile) for offer in self.offers]


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that another one equals or beats in every respect and beats in one."""
    kept: list[tuple[float, float, float, float, float]] = []
    frontier = []
    costs = (((c.latency_ms, c.energy_mj, c.memory_mb, -c.quality, c.first_token_ms), c) for c in candidates)
    for row, candidate in sorted(costs, key=lambda row: row[0]):  # whatever beats one comes before it
        latency, energy, memory, error, first = row
        if not any(
            a <= latency and b <= energy and c <= memory and d <= error and e <= first and k != row
            for k in kept
            for a, b, c, d, e in [k]
        ):
            kept.append(row)
            frontier.append(candidate)
    return frontier


def staircase(candidates: Sequence[Candidate], cost: str) -> tuple[list[float], list[Candidate]]:
    """Ascending costs, and the best candidate that each affords."""
    costs: list[float] = []
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (getattr(c, cost), -c.quality)):
        if getattr(candidate, cost) < inf and (not best or candidate.quality > best[-1].quality):
            costs.append(getattr(candidate, cost))
            best.append(candidate)
    return costs, best


def _expected(first: Measurement, then: Measurement, escalation: float) -> Measurement:
    """What a cascade of two is expected to cost, marked as predicted: energy is the mean, memory both sub-models'. At each
    length that one of them was measured at, where both were at some."""
    figures: dict[str, Any] = {"latency_ms": _expected_latency(first.latency_ms, then.latency_ms, escalation)}
    if first.energy_mj is not None and then.energy_mj is not None:
        figures["energy_mj"] = first.energy_mj + escalation * then.energy_mj
    if first.memory_mb is not None and then.memory_mb is not None:
        figures["memory_mb"] = first.memory_mb + then.memory_mb
    lengths = {}
    if first.lengths and then.lengths:
        a, b = Curve(first.lengths), Curve(then.lengths)
        for length in lengths_of([first, then]):
            lengths[length] = _expected_latency(a.latency(length), b.latency(length), escalation)
    return Measurement.model_validate({**figures, "lengths": lengths, "source": dict.fromkeys(figures, "predicted")})


def _expected_latency(a: LatencyMs, b: LatencyMs, escalation: float) -> LatencyMs:
    """At a percentile both sub-models' where more than the rest is passed on; at the median at least the mean, so that a
    cascade is never taken to cost what its first sub-model does."""

    def at(percentile: int) -> float:
        both = escalation > 1 - percentile / 100
        return float(getattr(a, f"p{percentile}") + (getattr(b, f"p{percentile}") if both else 0.0))

    p50 = max(at(50), a.p50 + escalation * b.p50)
    p90 = max(p50, at(90))
    return LatencyMs(p50=p50, p90=p90, p99=max(p90, at(99)), mean=a.mean + escalation * b.mean, n=0)
