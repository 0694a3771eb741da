"""A simulated battery with what makes real ones hard: other drain than the profile's, two wells, cold, readings that lie.

The battery is the kinetic model of Manwell and McGowan (1993, Solar Energy 50(5)): charge lies in an available and a bound
well, a load draws on the first, and the second refills it at a limited rate. With a single well it is an ideal one. Time goes
in ticks of ten seconds; within a tick the load is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from selector.adapt.plan import concave_frontier
from selector.choose.candidates import Candidate

Array = NDArray[np.float64]
TICK = 10.0  # seconds
HOURS = 4.0
TICKS = round(HOURS * 3600 / TICK)
PER_TICK = 5  # inferences that the plan speaks of
HOUR = round(3600 / TICK)
RESERVE = 5.0  # per cent that are to be left
TOLD = 0.005  # W drawn besides the inferences, as the plan says: about as much as they take


def frontier(count: int = 20) -> list[Candidate]:
    """From 2 to 40 mJ with falling returns, 77 to 92 %; not every one of them on the concave hull."""
    random = np.random.default_rng(2023)
    energies = np.geomspace(2.0, 40.0, count)
    accuracies = 0.93 - 0.16 * (energies / 2) ** -0.9 - random.uniform(0, 0.004, count)
    rows = zip(energies.tolist(), np.maximum.accumulate(accuracies).tolist(), strict=True)
    return [Candidate(f"s{i:02}", "simulated", a, e / 4, e, 1.0) for i, (e, a) in enumerate(rows)]


@dataclass
class World:
    """What happens in every tick, whatever a policy does."""

    start: float  # per cent
    scale: Array  # what an inference really takes, over its energy in the profile
    other: Array  # W drawn besides
    calls: Array  # inferences asked for
    charge: Array  # W from the mains; inferences are free then
    available: float = 1.0  # share of the capacity in the available well
    flow: float = 0.0  # 1/s between the wells
    told_watts: float | None = TOLD
    mean_mj: float = 10.0  # what the battery leaves for an inference on average, by the profile's measure
    step: float = 1.0  # per cent that the reading is rounded to
    wrong: Array = field(default_factory=lambda: np.zeros(TICKS))  # added to the reading
    stuck: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(TICKS, bool))
    bend: float = 0.0  # added to the reading at half charge, nothing at both ends
    capacity: float = 0.0  # J; 0: what makes this mean possible

    def __post_init__(self) -> None:
        if self.capacity:
            return
        free = self.charge > 0
        used = (self.scale * self.calls * self.mean_mj / 1e3 + self.other * TICK)[~free].sum()
        gained = (self.charge * TICK)[free].sum()
        self.capacity = float(used - gained) / ((self.start - RESERVE) / 100)

    def spent(self, tick: int, energy_mj: float) -> float:
        """Joules out of the battery in a tick in which the inferences take this by the profile."""
        if self.charge[tick] > 0:
            return -float(self.charge[tick]) * TICK
        return float(self.scale[tick]) * energy_mj / 1e3 + float(self.other[tick]) * TICK

    def readings(self) -> Callable[[int, float], float]:
        """What the battery says in a tick when this is true (per cent)."""
        latest = self.start

        def read(tick: int, percent: float) -> float:
            nonlocal latest
            if not self.stuck[tick]:
                bent = percent + self.bend * np.sin(np.pi * percent / 100) + self.wrong[tick]
                latest = float(np.clip(self.step * np.round(bent / self.step), 0, 100))
            return latest

        return read


class Outcome(NamedTuple):
    time_error: float  # |time at which the reserve was reached - target| / target; below 0 in `signed` when early
    signed: float
    accuracy: float  # over all inferences asked for until the target; one that is not answered counts 0
    percents: Array


Policy = Callable[[int, int, float], tuple[float, float]]
"""Tick, inferences in it, and what the battery says (negative: it is being charged, of the absolute value) to the energy that
these take together by the profile (mJ), and the sum of their accuracies."""


def simulate(world: World, policy: Policy) -> Outcome:
    c, k = world.available, world.flow
    first, second = world.capacity * c * world.start / 100, world.capacity * (1 - c) * world.start / 100
    read, reserve = world.readings(), RESERVE / 100 * c * world.capacity
    percents, gained = np.full(TICKS, np.nan), 0.0
    for tick in range(TICKS):
        percents[tick] = 100 * first / (c * world.capacity)
        percent, calls = read(tick, percents[tick]), int(world.calls[tick])
        charging = world.charge[tick] > 0
        energy, accuracy = policy(tick, calls, -percent if charging else percent)
        load = world.spent(tick, energy)
        refill = k * (second / (1 - c) - first / c) * TICK if c < 1 else 0.0
        before = first
        first, second = min(first + refill - load, c * world.capacity), second - refill
        if first <= reserve and not charging:
            end = (tick + (before - reserve) / (before - first)) / TICKS
            return Outcome(1 - end, end - 1, gained / world.calls.sum(), percents)
        gained += accuracy
    left = 100 * first / (c * world.capacity)
    rate = max((percents[-HOUR] - left) / HOUR, 1e-9)
    extra = (left - RESERVE) / rate / TICKS
    return Outcome(abs(extra), extra, gained / world.calls.sum(), percents)


def optimum(world: World, candidates: Sequence[Candidate], *, foreseen: bool = False) -> tuple[float, Array]:
    """The linear program over all ticks with the drain of every moment known ahead: its mean accuracy, and per tick the
    energy (mJ) and the sum of accuracies, of shape (TICKS, 2). That the device will be charged is known when it happens,
    unless it is `foreseen`.

    The charge left at the end is linear in every tick's load, so that the program is a fractional knapsack over the steps
    of the concave frontier. That the battery must not be empty before is left out, so that this is an upper bound.
    """
    free = np.flatnonzero(world.charge > 0)
    start = world.capacity * world.start / 100
    if foreseen or not len(free):
        mix = _knapsack(world, candidates, 0, start)
    else:
        assert world.available == 1
        mix = _knapsack(replace(world, charge=np.zeros(TICKS), capacity=world.capacity), candidates, 0, start)
        start -= sum(world.spent(tick, mix[tick, 0]) for tick in range(free[0]))
        mix = np.concatenate([mix[: free[0]], _knapsack(world, candidates, int(free[0]), start)])
    return float(mix[:, 1].sum() / world.calls.sum()), mix


def _knapsack(world: World, candidates: Sequence[Candidate], begin: int, start: float) -> Array:
    """From a tick on, with so many joules."""
    hull, ticks = concave_frontier(candidates), range(begin, TICKS)
    c, k = world.available, world.flow
    weights, ones, twos = np.zeros(TICKS), 1.0, 0.0  # of joules at the end in the available well per joule now
    for tick in reversed(ticks):
        weights[tick] = ones
        if c < 1:
            ones, twos = (
                ones * (1 - k * TICK / c) + twos * k * TICK / c,
                ones * k * TICK / (1 - c) + twos * (1 - k * TICK / (1 - c)),
            )
    left = ones * c * start + twos * (1 - c) * start - RESERVE / 100 * c * world.capacity
    free = world.charge > 0
    energies = np.where(free, 0.0, world.calls * hull[0].energy_mj)
    accuracies = world.calls * np.where(free, hull[-1].quality, hull[0].quality)
    left -= sum(weights[t] * world.spent(t, energies[t]) for t in ticks)
    price = weights * world.scale / 1e3
    slopes = [(b.quality - a.quality) / (b.energy_mj - a.energy_mj) for a, b in pairwise(hull)]
    steps = [(slopes[step] / price[t], step, t) for t in ticks if not free[t] for step in range(len(slopes))]
    for _, step, tick in sorted(steps, key=lambda item: -item[0]):
        if left <= 0:
            break
        more = float(world.calls[tick]) * (hull[step + 1].energy_mj - hull[step].energy_mj)
        share = 1.0 if more == 0 else min(1.0, left / (price[tick] * more))
        energies[tick] += share * more
        accuracies[tick] += share * float(world.calls[tick]) * (hull[step + 1].quality - hull[step].quality)
        left -= share * price[tick] * more
    return np.stack([energies, accuracies], axis=1)[begin:]


def worlds(seed: int, error: float = 0.3) -> Iterator[tuple[str, World]]:
    """Every scenario for a seed; `error`: how much the drain differs from the profile's."""
    for number, (name, make) in enumerate(SCENARIOS.items()):
        random = np.random.default_rng([seed, number])
        sign = 1.0 if random.random() < 0.5 else -1.0
        yield name, make(random, error, sign)


def _plain(random: np.random.Generator, factor: float | Array, **more: object) -> World:
    """The drain is so many times the profile's, and wanders around that by 5 % within ten minutes."""
    noise, wander = random.normal(0, 1, TICKS), np.empty(TICKS)
    keep, level = np.exp(-TICK / 600), random.normal()
    for tick in range(TICKS):
        level = keep * level + np.sqrt(1 - keep**2) * noise[tick]
        wander[tick] = level
    fields = {
        "start": random.uniform(85, 100),
        "scale": factor * np.exp(0.05 * wander),
        "other": np.full(TICKS, TOLD) * factor,
        "calls": np.full(TICKS, float(PER_TICK)),
        "charge": np.zeros(TICKS),
        "mean_mj": random.uniform(6, 14),
    }
    return World(**(fields | more))  # type: ignore[arg-type]


def _midway(random: np.random.Generator, error: float, sign: float) -> World:
    """Another program begins (or ends) to use the device: all costs more (less), from some moment on."""
    at = round(random.uniform(0.35, 0.65) * TICKS)
    factor = np.where(np.arange(TICKS) < at, 1.0, 1 + sign * error)
    return _plain(random, factor)


def _cold(random: np.random.Generator, error: float, sign: float) -> World:
    """20 degrees, -10 in the middle, 20 again: losses in the battery rise by 1 % per degree below 20."""
    down, up = random.uniform(0.15, 0.3), random.uniform(0.6, 0.85)
    temperature = np.interp(np.arange(TICKS) / TICKS, [0, down, down + 0.1, up, up + 0.1, 1], [20, 20, -10, -10, 20, 20])
    losses = 1 + error / 30 * (20 - temperature)
    return _plain(random, losses)


def _recovery(random: np.random.Generator, error: float, sign: float) -> World:
    """Two wells, half of the charge bound; a camera draws twice as much as all inferences for a quarter of every hour, and what
    the battery says follows the available well: it falls, and recovers."""
    seconds = np.arange(TICKS) * TICK + random.uniform(0, 3600)
    other = (1 + error) * TOLD + 0.01 * (seconds % 3600 < 900)
    return _plain(random, 1 + error, other=other, available=0.5, flow=random.uniform(1, 3) * 1e-4)


def _jumps(random: np.random.Generator, error: float, sign: float) -> World:
    wrong = np.zeros(TICKS)
    for at in random.integers(0, TICKS - 30, 8):
        wrong[at : at + random.integers(6, 18)] = random.choice([-1, 1]) * random.uniform(3, 10)
    return _plain(random, 1 + sign * error, wrong=wrong)


def _stuck(random: np.random.Generator, error: float, sign: float) -> World:
    stuck = np.zeros(TICKS, bool)
    for at in random.uniform([0.1, 0.4, 0.7], [0.3, 0.6, 0.8]):
        stuck[round(at * TICKS) : round(at * TICKS) + random.integers(120, 180)] = True  # 20 to 30 minutes
    return _plain(random, 1 + sign * error, stuck=stuck)


def _charging(random: np.random.Generator, error: float, sign: float) -> World:
    """An hour at the mains in the middle, that gives 15 to 25 % of all that the four hours take."""
    charge, at, mean_mj = np.zeros(TICKS), round(random.uniform(0.3, 0.45) * TICKS), random.uniform(6, 14)
    factor = 1 + sign * error
    watts = factor * (mean_mj / 1e3 * PER_TICK / TICK + TOLD)
    charge[at : at + 360] = random.uniform(0.15, 0.25) * HOURS * watts
    return _plain(random, factor, charge=charge, mean_mj=mean_mj)


def _asked(random: np.random.Generator, error: float, sign: float) -> World:
    """Inferences are asked for more (or less) often than the plan says."""
    calls = random.poisson(PER_TICK * (1 + sign * error), TICKS).astype(float)
    return _plain(random, 1.0, calls=calls)


Maker = Callable[[np.random.Generator, float, float], World]
SCENARIOS: dict[str, Maker] = {
    "drain-high": lambda random, error, sign: _plain(random, 1 + error),
    "drain-low": lambda random, error, sign: _plain(random, 1 - error),
    "load-midway": _midway,
    "idle-wrong": lambda random, error, sign: _plain(random, 1.0, other=np.full(TICKS, TOLD * (1 + sign * error))),
    "cold": _cold,
    "recovery": _recovery,
    "rounded-5": lambda random, error, sign: _plain(random, 1 + sign * error, step=5.0),
    "jumps": _jumps,
    "stuck": _stuck,
    "biased": lambda random, error, sign: _plain(random, 1 + error, bend=sign * random.uniform(3, 8)),
    "relative": lambda random, error, sign: _plain(random, 1 + sign * error, told_watts=None),
    "charging": _charging,
    "asked": _asked,
}
