"""`Program`: one call of a graph, or of a cascade's two. Whoever runs one asks no more which it is. Large batches within a
limit of memory are run in parts.

How sure a sub-model is of its answer is the margin between its two largest softmax probabilities (Scheffer et al. 2001, "Active
hidden Markov models for information extraction", section 4). It saves a few per cent more than the largest alone: where two
classes are alike, it sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, inf
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Bundle
from exporter.bundle.session import CPU, SessionOptions, shrinking
from selector.choose.cascades import Cascade
from selector.run.cache import ModelCache, session_opener

Array = NDArray[Any]
Feed = Mapping[str, Array]
Logits = NDArray[np.float32]
_FEW = 32  # classes: up to so many, adding up in Python costs less than calling numpy


class Part(NamedTuple):
    """What one sub-model took of a call (ms), and which share of the examples it saw."""

    submodel: str
    latency_ms: float
    share: float = 1.0


class Ran(NamedTuple):
    """What a call gave: outputs by name, in the bundle's order, and its parts in the order in which they ran. The first saw
    all examples: what it took does not depend on what they are."""

    outputs: dict[str, Array]
    parts: tuple[Part, ...]

    @property
    def seen(self) -> list[tuple[str, float]]:
        """Each sub-model that ran, and which share of the examples it saw."""
        return [(part.submodel, part.share) for part in self.parts]


class Program(Protocol):
    """For any number of threads. Raises what ONNX Runtime raises. `shrink`: holds no more memory after it than it needs."""

    def run(self, feed: Feed, *, shrink: bool = False) -> Ran: ...


class Session(Protocol):
    """What is needed of `onnxruntime.InferenceSession`."""

    def run(self, names: Sequence[str], feed: Feed, run_options: Any = None) -> Sequence[Array]: ...

    def get_providers(self) -> Sequence[str]: ...


class GraphProgram:
    """A sub-model's own graph."""

    def __init__(self, submodel: str, session: Session, outputs: Sequence[str]) -> None:
        self.submodel, self.session, self.outputs = submodel, session, list(outputs)

    def run(self, feed: Feed, *, shrink: bool = False) -> Ran:
        options = (shrinking(),) if shrink and list(self.session.get_providers()) == [CPU] else ()
        begun = time.perf_counter()
        values = self.session.run(self.outputs, feed, *options)
        took = (time.perf_counter() - begun) * 1e3
        return Ran(dict(zip(self.outputs, values, strict=True)), (Part(self.submodel, took),))


class CascadeProgram:
    """Both sub-models of a cascade; of a batch only the examples that are not sure go to the larger one. The first output has
    the logits."""

    def __init__(self, cascade: Cascade, first: Program, then: Program) -> None:
        self.cascade, self.first, self.then = cascade, first, then

    def run(self, feed: Feed, *, shrink: bool = False) -> Ran:
        ran = self.first.run(feed, shrink=shrink)
        logits = next(iter(ran.outputs.values()))
        if len(logits) == 1:  # most calls on a device: 1 instead of 8 us
            sure = margin_of(logits[0]) >= self.cascade.threshold
            return ran if sure else self._all(ran, feed, shrink)
        passed = passed_on(self.cascade, logits)
        if passed.all():
            return self._all(ran, feed, shrink)
        if not passed.any():
            return ran
        better = self.then.run({name: array[passed] for name, array in feed.items()}, shrink=shrink)
        outputs = {name: value.copy() for name, value in ran.outputs.items()}
        for name, value in outputs.items():
            value[passed] = better.outputs[name]
        share = float(passed.mean())
        return Ran(outputs, ran.parts + tuple(part._replace(share=share) for part in better.parts))

    def _all(self, ran: Ran, feed: Feed, shrink: bool) -> Ran:
        outputs, parts = self.then.run(feed, shrink=shrink)
        return Ran(outputs, ran.parts + parts)


def program_opener(
    bundle: Bundle, options: SessionOptions, cache: ModelCache | bool = True, cascades: Iterable[Cascade] = ()
) -> Callable[[str], Program]:
    """How `Runtime` and `sortednet profile` open a sub-model, or a cascade of these. `cache`: True is the default one, False
    none. What it returns raises what ONNX Runtime raises."""
    open_session = session_opener(bundle, options, cache)
    known = {cascade.id: cascade for cascade in cascades}
    outputs = [output.name for output in bundle.manifest.outputs]

    def opened(name: str) -> Program:
        cascade = known.get(name)
        if cascade is None:
            return GraphProgram(name, open_session(name), outputs)
        return CascadeProgram(cascade, opened(cascade.first), opened(cascade.then))

    return opened


def divisible(bundle: Bundle) -> bool:
    """Whether examples can be computed in parts: the first axis of every input and output is the same free one."""
    specs = [*bundle.manifest.inputs, *bundle.manifest.outputs]
    first = {spec.shape[0] if spec.shape else None for spec in specs}
    return len(first) == 1 and isinstance(first.pop(), str)


def examples_within(limit_mb: float, memory_mb: float) -> int | None:
    """How many examples at once stay below the limit, of a program that takes `memory_mb` with one; None: any number. Half
    of what would fit by that, because the arena grows in powers of two; at least one."""
    if limit_mb == inf or memory_mb <= 0:
        return None
    return max(1, int(limit_mb / (2 * memory_mb)))


def run_in_parts(program: Program, feed: Feed, examples: int, most: int) -> Ran:
    """Runs so many examples, `most` at once, and gives the arena back in the end. Raises what the program raises.

    ONNX Runtime's arena grows with the batch and keeps what it has: a network whose session takes 0.2 MB held 137 MB after a
    batch of 512. In parts it computes the same, in no more time: what a part needs stays in the processor's caches.
    """
    rans = [
        program.run({name: array[start : start + most] for name, array in feed.items()}, shrink=start + most >= examples)
        for start in range(0, examples, most)
    ]
    if len(rans) == 1:
        return rans[0]
    took: dict[str, tuple[float, float]] = {}
    for place, ran in enumerate(rans):
        of_all = min(most, examples - place * most) / examples
        for submodel, latency_ms, share in ran.parts:
            before, seen = took.get(submodel, (0.0, 0.0))
            took[submodel] = before + latency_ms, seen + share * of_all
    outputs = {name: np.concatenate([ran.outputs[name] for ran in rans]) for name in rans[0].outputs}
    return Ran(outputs, tuple(Part(name, *figures) for name, figures in took.items()))


def passed_on(cascade: Cascade, logits: Logits) -> NDArray[np.bool_]:
    """For each example whether the larger sub-model is asked; where a logit is NaN it is. Shape (N, classes) to (N,)."""
    return ~(margins(logits) >= cascade.threshold)


@np.errstate(invalid="ignore")
def margins(logits: Logits) -> NDArray[np.float64]:
    """The largest less the second largest softmax probability of each example; NaN where a logit is NaN or the largest is
    infinite. Shape (N, classes) to (N,)."""
    exact = logits.astype(np.float64)
    highest = np.partition(exact, -2, axis=1)
    powers = np.exp(exact - highest[:, -1:])
    return np.asarray((1.0 - np.exp(highest[:, -2] - highest[:, -1])) / powers.sum(axis=1))


def margin_of(logits: Logits) -> float:
    """The same of one example. Shape (classes,)."""
    if logits.shape[0] > _FEW:
        return float(margins(logits[np.newaxis])[0])
    values = sorted(logits.tolist())
    largest, total = values[-1], 0.0
    for value in values:
        total += exp(value - largest)
    return (1.0 - exp(values[-2] - largest)) / total
