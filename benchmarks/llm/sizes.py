"""All sizes: each as fast as an export of its own, what they span, and what their bundle takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.llm.measured import PRECISIONS, Measured, measured
from benchmarks.llm.rates import ours
from benchmarks.llm.turns import CONTEXTS, THREADS, Entrant, Figures, Seconds, compare, milliseconds, times_as_fast

ROUNDS = 7

NOTES = {
    "speed_ratio": "tokens per second of each size over those of an export of its own, whose weights are that size's alone, "
    f"fp32; contexts {' and '.join(map(str, CONTEXTS))}, processor time of one thread and wall time of two; of each of these "
    "the median of the sizes, and the one that is farthest from 1; _min and _max are over sizes and all of these",
    "cost_span": "milliseconds of a token of the costliest size over the least, fp32, context 256, processor time of 1 thread",
    "cost_span.int4": "the same in this precision, the worst of contexts, processor time of one thread and wall time of two",
    "bundle_ratio": "bytes of the bundle of all sizes over that of the full one alone, the worst of the precisions",
}


def measure(names: Sequence[str] = (), rounds: int = ROUNDS, contexts: Sequence[int] = CONTEXTS) -> Figures:
    """`names`: of sizes, default all."""
    given = measured()
    taken: dict[str, dict[str, list[Seconds]]] = {}
    for name in names or given.sizes:
        taken[name] = {}
        with tempfile.TemporaryDirectory() as folder:
            bundled = ours(given, "fp32", name)
            entrants = {"ours": bundled, "alone": Entrant("ours", f"{bundled.model}::{given.plain(name, Path(folder))}")}
            for threads in THREADS:
                for what, rounds_of in compare(entrants, threads, contexts, None, rounds).items():
                    taken[name][f"{what}.{threads}"] = rounds_of
        print(name, *(f"{p} {times_as_fast(r, 'ours', 'alone'):.3f}" for p, r in taken[name].items()), flush=True)
    return {"sizes": len(given.sizes), **speeds(taken, str(contexts[0])), **bytes_of(given)}


def span(rounds: int = ROUNDS, contexts: Sequence[int] = CONTEXTS, precisions: Sequence[str] = PRECISIONS[1:]) -> Figures:
    """What the sizes span where weights are fewer bytes."""
    given, found = measured(), {}
    least, *_ = given.sizes
    for precision in precisions:
        entrants = {"full": ours(given, precision), "least": ours(given, precision, least)}
        ratios = [
            times_as_fast(taken, "least", "full")
            for threads in THREADS
            for taken in compare(entrants, threads, contexts, None, rounds).values()
        ]
        found[f"cost_span.{precision}"] = min(ratios)
    return found


def speeds(taken: Mapping[str, Mapping[str, list[Seconds]]], context: str) -> Figures:
    """By size, and by context and threads, the rounds of both."""
    places = list(next(iter(taken.values())))
    ratios = {place: [times_as_fast(of[place], "ours", "alone") for of in taken.values()] for place in places}
    medians = {place: float(np.median(of)) for place, of in ratios.items()}
    costs = [milliseconds(of[f"{context}.1"], "ours") for of in taken.values()]
    every = [ratio for of in ratios.values() for ratio in of]
    return {
        "speed_ratio": max(medians.values(), key=lambda ratio: abs(np.log(ratio))),
        "speed_ratio_min": min(every),
        "speed_ratio_max": max(every),
        **{f"speed_ratio.{place}": median for place, median in medians.items()},
        "cost_span": max(costs) / min(costs),
        "cost_ms_min": min(costs),
        "cost_ms_max": max(costs),
    }


def bytes_of(given: Measured, precisions: Sequence[str] = PRECISIONS) -> Figures:
    found = {}
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            alone = given.export(Path(folder) / "alone", precision, [given.nested.family.largest])
            found[f"bundle_ratio.{precision}"] = given.bundle(precision).bytes_total / alone.bytes_total
    return {"bundle_ratio": max(found.values()), **found}
