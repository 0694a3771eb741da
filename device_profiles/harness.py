"""The measuring harness: latency, load time and memory of many sub-models, interleaved.

In every round each sub-model is loaded, warmed up, timed and closed, in a new random order: a noisy minute hits all of
them alike, only one is in memory at a time, and every round gives one more sample of load time and memory.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from device_profiles.energy import EnergyMeter
from device_profiles.host import private_memory_mb
from device_profiles.schema import Decoding, LatencyMs, Measurement, Source

if TYPE_CHECKING:
    from rich.progress import Progress

Run = Callable[[], object]
Load = Callable[[str], Run]
RunAt = Callable[[Any], object]
"""Of an input of that length, or of what else is timed by itself."""
LoadAt = Callable[[str], RunAt]
_ONLY = 0
"""The length where inputs have one size."""


class DecoderRun(Protocol):
    """An open language model. What it was told before does not matter: only how much that was."""

    def prefill(self, tokens: int) -> object:
        """Reads a prompt of so many tokens, from an empty cache to the logits of its last one."""

    def step(self, context: int) -> object:
        """Reads one further token, where so many are in the cache."""


ROUNDS = 5
MAX_ROUNDS = 15
SETTLED = 0.02
"""A median is stable when the standard error of its rounds' medians is at most this share of it."""
WARMUP_RUNS = 3
RUNS_PER_ROUND = 20
ROUND_SECONDS = 0.5
"""A slow sub-model is timed for about this long per round, and at least 3 times."""


@dataclass
class _Samples:
    rounds_ms: dict[Hashable, list[list[float]]]  # by length
    load_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    energy_mj: list[float] = field(default_factory=list)


def measure(
    load: Load,
    submodels: Sequence[str],
    *,
    repeats: int | None = None,
    meter: EnergyMeter | None = None,
    show_progress: bool = True,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measures every sub-model. `load(id)` opens one and returns the call to time; dropping the call closes it.

    `repeats`: timed runs per sub-model; by default as many as make the median stable: 5 rounds, then up to 15 for those
    whose rounds still disagree. Energy is known with a `meter` only.
    """

    def load_only(name: str) -> RunAt:
        run = load(name)
        return lambda _: run()

    found = _measured(load_only, submodels, [_ONLY], repeats, meter, show_progress, seed)
    return {name: _summary(s, meter) for name, s in found.items()}


def measure_lengths(
    load: LoadAt,
    submodels: Sequence[str],
    lengths: Sequence[int],
    *,
    repeats: int | None = None,
    meter: EnergyMeter | None = None,
    show_progress: bool = True,
    seed: int = 0,
) -> dict[str, Measurement]:
    """The same at several lengths of the input: what `load(id)` returns is called with each. Latency is known by length, and
    `latency_ms` is that of the longest; so are memory, which an open session keeps, and energy.

    `repeats` are of each length. By default a round gives all lengths together the time that one size would have.
    """
    found = _measured(load, submodels, sorted(lengths), repeats, meter, show_progress, seed)
    return {name: _summary(s, meter) for name, s in found.items()}


def measure_decoding(
    load: Callable[[str], DecoderRun],
    submodels: Sequence[str],
    prompts: Sequence[int],
    contexts: Sequence[int],
    *,
    repeats: int | None = None,
    meter: EnergyMeter | None = None,
    show_progress: bool = True,
    seed: int = 0,
) -> dict[str, Measurement]:
    """What it takes to read prompts of so many tokens, and one further token after so many. Latency and energy are those of a
    token in the longest context; memory is what the open session, that context and the longest prompt added.

    `repeats` are of each of them. By default a round gives all together the time that one size would have.
    """

    def load_one(name: str) -> RunAt:
        opened = load(name)
        calls = {"prefill": opened.prefill, "token": opened.step}
        return lambda what: calls[what[0]](what[1])

    points = [("prefill", tokens) for tokens in sorted(prompts)] + [("token", tokens) for tokens in sorted(contexts)]
    found = _measured(load_one, submodels, points, repeats, meter, show_progress, seed, first=[("prefill", max(prompts))])
    return {name: _of_decoder(samples, meter) for name, samples in found.items()}


def _measured(
    load: LoadAt,
    submodels: Sequence[str],
    lengths: Sequence[Hashable],
    repeats: int | None,
    meter: EnergyMeter | None,
    show_progress: bool,
    seed: int,
    first: Sequence[Hashable] = (),
) -> dict[str, _Samples]:
    """`lengths` ascend. `first`: what takes memory beside the longest."""
    order = random.Random(seed)
    samples = {name: _Samples({length: [] for length in lengths}) for name in submodels}
    per_round = RUNS_PER_ROUND if repeats is None else -(-repeats // min(repeats, ROUNDS))
    rounds = ROUNDS if repeats is None else min(repeats, ROUNDS)
    limit = RUNS_PER_ROUND * MAX_ROUNDS if repeats is None else repeats
    seconds = ROUND_SECONDS / len(lengths) if repeats is None else float("inf")
    with _collections_made_short(), progress_bar() if show_progress else nullcontext() as progress:
        task = progress.add_task("measuring", total=rounds * len(samples)) if progress else None
        for number in range(MAX_ROUNDS if repeats is None else rounds):
            names = list(submodels) if number < rounds else [n for n, s in samples.items() if not _settled(s)]
            if not names:
                break
            if progress and task is not None and number >= rounds:
                progress.update(task, total=(progress.tasks[0].total or 0) + len(names))
            for name in order.sample(names, len(names)):
                left = limit - sum(len(r) for r in samples[name].rounds_ms[lengths[-1]])
                _one_round(load, name, samples[name], min(per_round, left), seconds, meter, order, first)
                if progress and task is not None:
                    progress.advance(task)
    return samples


@contextmanager
def _collections_made_short() -> Iterator[None]:
    """What is there already is left out of the garbage collections before each reading of memory: with torch loaded each
    would take 150 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _one_round(
    load: LoadAt,
    name: str,
    samples: _Samples,
    runs: int,
    seconds: float,
    meter: EnergyMeter | None,
    order: random.Random,
    first: Sequence[Hashable] = (),
) -> None:
    *shorter, longest = samples.rounds_ms
    memory_before = private_memory_mb()
    begun = time.perf_counter()
    run = load(name)
    samples.load_ms.append((time.perf_counter() - begun) * 1e3)
    for other in first:
        run(other)
    run(longest)  # first: memory that a shorter one has set up would be taken for the session's
    memory_after = private_memory_mb()
    if memory_before is not None and memory_after is not None:
        samples.memory_mb.append(max(0.0, memory_after - memory_before))
    for length in [longest, *order.sample(shorter, len(shorter))]:
        for _ in range(WARMUP_RUNS - (length == longest)):
            run(length)
        timed: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(timed) < runs and (len(timed) < 3 or time.perf_counter() < deadline):
            begun = time.perf_counter()
            run(length)
            timed.append((time.perf_counter() - begun) * 1e3)
        if timed:
            samples.rounds_ms[length].append(timed)
    if meter is not None:
        with suppress(OSError):  # a battery that was taken out, say
            samples.energy_mj.append(_energy_mj(lambda: run(longest), meter))


def _energy_mj(run: Run, meter: EnergyMeter) -> float:
    """Of one run, from as many as the meter needs to see a difference."""
    begun, before, runs = time.perf_counter(), meter.joules(), 0
    while runs < 3 or time.perf_counter() - begun < meter.window_s:
        run()
        runs += 1
    return 1e3 * (meter.joules() - before) / runs


def _settled(samples: _Samples) -> bool:
    """Whether the rounds' medians agree, at every length. 1.25 sigma / sqrt(n) is the standard error of a median (normal
    noise)."""

    def agree(rounds: Sequence[Sequence[float]]) -> bool:
        medians = np.array([np.median(r) for r in rounds])
        error = 1.25 * medians.std(ddof=1) / np.sqrt(len(medians))
        return bool(error <= SETTLED * np.median(medians))

    return all(agree(rounds) for rounds in samples.rounds_ms.values())


def _summary(samples: _Samples, meter: EnergyMeter | None) -> Measurement:
    latencies = {length: _latency(rounds) for length, rounds in samples.rounds_ms.items()}
    *_, longest = latencies.values()
    return _measurement(samples, meter, longest, lengths={} if _ONLY in latencies else latencies)


def _of_decoder(samples: _Samples, meter: EnergyMeter | None) -> Measurement:
    parts: dict[str, dict[int, LatencyMs]] = {"prefill": {}, "token": {}}
    for point, rounds in samples.rounds_ms.items():
        assert isinstance(point, tuple)
        parts[point[0]][point[1]] = _latency(rounds)
    *_, longest = parts["token"].values()
    return _measurement(samples, meter, longest, decoding=Decoding(**parts))


def _measurement(samples: _Samples, meter: EnergyMeter | None, latency: LatencyMs, **more: Any) -> Measurement:
    figures: dict[str, Any] = {"load_ms": round(float(np.median(samples.load_ms)), 3)}
    if samples.memory_mb:
        figures["memory_mb"] = round(float(np.median(samples.memory_mb)), 3)
    source: dict[str, Source] = {"latency_ms": "measured", **dict.fromkeys(figures, "measured")}
    if meter is not None and samples.energy_mj:
        figures["energy_mj"] = round(float(np.median(samples.energy_mj)), 5)
        source["energy_mj"] = meter.source
    return Measurement.model_validate({"latency_ms": latency, **more, **figures, "source": source})


def _latency(rounds: Sequence[Sequence[float]]) -> LatencyMs:
    timed = np.concatenate([np.array(r) for r in rounds])
    p50, p90, p99 = (round(float(v), 5) for v in np.percentile(timed, [50, 90, 99]))
    return LatencyMs(p50=p50, p90=p90, p99=p99, mean=round(float(timed.mean()), 5), n=len(timed))


def progress_bar() -> Progress:
    """On stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
