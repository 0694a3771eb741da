"""What a run gives, what its outputs say (names of classes, words with tags, parts of a text), and what is kept of it.

Shapes: N examples, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.bundle.manifest import TaskEntry
from selector.adapt.energy import UNKNOWN, Energy, EnergySource
from selector.choose.budget import Selection
from selector.run.text import QUESTIONS, TOKENS, Encoded

CLASSIFICATION = "classification"


class Answer(NamedTuple):
    """One class that an example may be of."""

    label: str  # its name, or its number where the classes have none
    probability: float  # 0 to 1


class Tagged(NamedTuple):
    """One word of a text, and the class that it most probably is of."""

    word: str
    start: int  # where it stands in the text, in characters
    end: int
    label: str
    probability: float  # 0 to 1


class Span(NamedTuple):
    """The part of a text that most probably answers a question."""

    text: str
    start: int  # where it stands in the text, in characters
    end: int
    probability: float  # 0 to 1: that it starts there times that it ends there, of all places in the text


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave, what was chosen for it and why, and how long it took (without the choice)."""

    outputs: dict[str, NDArray[Any]]
    selection: Selection
    latency_ms: float  # of the whole batch
    task: TaskEntry | None = None
    texts: Encoded | None = None  # where texts were run: their tokens, how many were cut
    energy: Energy = UNKNOWN  # of the whole batch, estimated by the profile
    examples: int = 1  # of the batch, or how many texts

    @property
    def each_ms(self) -> float:
        """Of one example, which is what a budget's deadline is of."""
        return self.latency_ms / self.examples

    @property
    def energy_mj(self) -> float | None:
        """Estimated; None where the profile knows no energy of what ran."""
        return self.energy.mj

    @property
    def energy_source(self) -> EnergySource:
        """Where the estimate is from: the profile's energies were measured, declared or predicted, or are unknown."""
        return self.energy.source

    @property
    def labels(self) -> list[str]:
        """Of each example the name of the class that it most probably is; empty for another task than classification."""
        return [best[0].label for best in self.answers(1)]

    def answers(self, count: int = 3) -> list[list[Answer]]:
        """Of each example so many most probable classes with their probabilities; empty for another task."""
        return [] if self.task is None else answers(self.task, self.outputs, count)

    def words(self) -> list[list[Tagged]]:
        """Of each text its words with their classes; empty where no texts were run, or for another task than token
        classification."""
        return [] if self.task is None or self.texts is None else tagged(self.task, self.outputs, self.texts)

    def spans(self) -> list[list[Span]]:
        """Of each pair of texts the part of the second that answers the first, none where nothing of it was left; empty for
        another task than question answering."""
        return [] if self.task is None or self.texts is None else spans(self.task, self.outputs, self.texts)


class RunRecord(NamedTuple):
    """One run in a runtime's history."""

    at: float  # seconds since 1970
    submodel: str
    device: str  # the profile
    latency_ms: float  # per example of its batch
    limit_ms: float | None
    slow_down: float  # of the device, relative to its profile, after this run
    battery_percent: float | None
    reason: str  # of the choice; where there is a battery plan it says how that stands
    energy_mj: float | None = None  # per example, estimated by the profile
    feasible: bool = True  # whether the choice kept the limits, as expected

    @property
    def met(self) -> bool:
        return self.limit_ms is None or self.latency_ms <= self.limit_ms


def answers(task: TaskEntry, outputs: Mapping[str, NDArray[Any]], count: int = 3) -> list[list[Answer]]:
    """For each example its most probable classes, the most probable first. Empty for another task than classification."""
    logits = next(iter(outputs.values()), None)
    if task.kind != CLASSIFICATION or logits is None or logits.ndim != 2:
        return []
    probabilities = _softmax(logits)
    chosen = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    names = _names(task, logits.shape[1])
    return [[Answer(names[c], float(row[c])) for c in best] for row, best in zip(probabilities, chosen, strict=True)]


def tagged(task: TaskEntry, outputs: Mapping[str, NDArray[Any]], texts: Encoded) -> list[list[Tagged]]:
    """For each text its words, each with the class of its first piece, as it was trained; words behind what was cut off have
    none and are left out. Empty for another task than token classification."""
    logits = next(iter(outputs.values()), None)
    if task.kind != TOKENS or logits is None or logits.ndim != 3:
        return []
    names = _names(task, logits.shape[2])
    found = []
    for row, words in zip(logits, texts.words, strict=True):
        probabilities = _softmax(row[[word.token for word in words]]) if words else row[:0]
        best = probabilities.argmax(axis=1)
        found.append(
            [
                Tagged(word.text, word.start, word.end, names[c], float(of_word[c]))
                for word, of_word, c in zip(words, probabilities, best.tolist(), strict=True)
            ]
        )
    return found


def spans(task: TaskEntry, outputs: Mapping[str, NDArray[Any]], texts: Encoded) -> list[list[Span]]:
    """For each text the part whose first and last token have the highest sum of both logits, of those that do not end before
    they start, as it is scored in training; none where no token was kept. Empty for another task than question answering."""
    if task.kind != QUESTIONS or not {"start_logits", "end_logits"} <= set(outputs):
        return []
    found: list[list[Span]] = []
    for row, (pieces, text) in enumerate(zip(texts.pieces, texts.answering, strict=True)):
        if not pieces:
            found.append([])
            continue
        tokens = [piece.token for piece in pieces]
        starts, ends = (outputs[name][row, tokens].astype(np.float64) for name in ("start_logits", "end_logits"))
        last = int((np.maximum.accumulate(starts) + ends).argmax())
        first = int(starts[: last + 1].argmax())
        probability = _softmax(starts[None])[0, first] * _softmax(ends[None])[0, last]
        start, end = pieces[first].start, pieces[last].end
        found.append([Span(text[start:end], start, end, float(probability))])
    return found


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Of each row, (N, C)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _names(task: TaskEntry, count: int) -> tuple[str, ...]:
    return task.labels if len(task.labels) == count else tuple(map(str, range(count)))
