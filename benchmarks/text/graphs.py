"""The graphs of both tasks: whether they compute what torch does, how large they are, how fast."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.text.bundles import Made, exported_alone, exported_by_torch, of_task
from benchmarks.text.data import TASKS
from benchmarks.text.timing import Figures, texts, times_as_fast
from exporter.bundle.session import SessionOptions, open_session, relative_error, run_session
from exporter.selftest import torch_outputs

BATCHES, LENGTHS = 8, 256  # parity: up to so many texts, and tokens
DRAWN = 12  # pairs of them for each sub-model, beside the four corners
LENGTH = 64  # of the text that is timed
OPENINGS, ROUNDS = 3, 21  # where weights lie in memory is a part of it: every session is opened anew
BY_TORCH = 8  # sizes that are compared with what torch writes
ALIKE = 1e-3  # relative difference of answers up to which two graphs are the same network

NOTES = {
    "parity": "largest difference from torch, relative to the largest logit, of every sub-model of both bundles; each on "
    f"{DRAWN + 4} pairs of batch 1 to {BATCHES} and length 1 to {LENGTHS}: the corners and others drawn; texts of unequal "
    "lengths, padded",
    "bundle_ratio": "bytes of the bundle over one torch.onnx.export of the full model; the worse of both tasks",
    "speed_ratio": f"tokens per second over those of an export of that size alone, which our exporter writes: batch 1, "
    f"{LENGTH} tokens, processor time of 1 thread; each the median of {OPENINGS} times {ROUNDS} turns; the median of all sizes "
    "of both bundles",
    "speed_ratio_torch": f"the same over what torch.onnx.export writes, the median of {BY_TORCH} sizes of each bundle",
}


def parity() -> Figures:
    return worst("parity", {task: parity_of(of_task(task)) for task in TASKS})


def bundle_ratio() -> Figures:
    return worst("bundle_ratio", {task: size_over_torch(of_task(task)) for task in TASKS})


def speed() -> Figures:
    alone: list[float] = []
    by_torch: list[float] = []
    for task in TASKS:
        made = of_task(task)
        alone += over_alone(made).values()
        by_torch += over_torch(made).values()
    return {
        "speed_ratio": float(np.median(alone)),
        "speed_ratio_min": min(alone),
        "speed_ratio_max": max(alone),
        "speed_ratio_torch": float(np.median(by_torch)),
        "speed_ratio_torch_min": min(by_torch),
    }


def worst(name: str, of_tasks: Mapping[str, float]) -> Figures:
    """The largest, and each."""
    return {name: max(of_tasks.values()), **{f"{name}.{task}": value for task, value in of_tasks.items()}}


def parity_of(made: Made, batches: int = BATCHES, lengths: int = LENGTHS) -> float:
    """The largest relative difference between a graph and its sub-model in torch."""
    found = 0.0
    for number, (name, sub) in enumerate(made.sizes().items()):
        session = open_session(made.bundle.graph_path(name))
        for count, length in pairs(number, batches, lengths):
            feed = texts(count, length, number, made.vocabulary, padded=True)
            expected = torch_outputs(made.nested, sub, feed)
            found = max(found, relative_error(run_session(session, feed), expected))
    return found


def pairs(seed: int, batches: int, lengths: int) -> list[tuple[int, int]]:
    """Of a batch and a length: the corners, and others drawn."""
    random = np.random.default_rng(seed)
    drawn = zip(random.integers(1, batches + 1, DRAWN), random.integers(1, lengths + 1, DRAWN), strict=True)
    return [(1, 1), (1, lengths), (batches, 1), (batches, lengths), *((int(n), int(t)) for n, t in drawn)]


def size_over_torch(made: Made) -> float:
    with tempfile.TemporaryDirectory() as folder:
        plain = exported_by_torch(made.nested, made.nested.family.largest, Path(folder) / "full.onnx")
        return made.bundle.bytes_total / plain.stat().st_size


def over_alone(made: Made, count: int | None = None) -> dict[str, float]:
    """How many times as fast as its own export each size is."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: faster(made, name, exported_alone(made.nested, sub, Path(folder) / "alone"))
            for name, sub in made.sizes(count).items()
        }


def over_torch(made: Made, count: int = BY_TORCH) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: faster(made, name, exported_by_torch(made.nested, sub, Path(folder) / "plain.onnx"))
            for name, sub in made.sizes(count).items()
        }


def faster(made: Made, name: str, theirs: Path, length: int = LENGTH) -> float:
    """How many times as many tokens per second. Raises RuntimeError where the two do not answer alike."""
    feed = texts(1, length, 0, made.vocabulary)
    found = []
    for _ in range(OPENINGS):
        sessions = [open_session(path, SessionOptions(threads=1)) for path in (made.bundle.graph_path(name), theirs)]
        first, second = (run_session(session, feed) for session in sessions)
        if (error := relative_error(first, second)) > ALIKE:
            raise RuntimeError(f"{name}: answers {error:.1e} other than its own export: the two are not comparable")
        ours, own = (lambda s=session: s.run(None, feed) for session in sessions)
        found.append(times_as_fast(ours, own, ROUNDS))
    return float(np.median(found))
