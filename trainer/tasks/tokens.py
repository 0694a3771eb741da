"""What is said of text: of each token (`token-classification`), of a place (`question-answering`), of the whole as a vector
(`embedding`); what comes next is in `trainer.tasks.language`.

Shapes: N batch, T tokens, C classes or vocabulary, d numbers of an embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.submodel import TrainerError
from trainer.task import Outputs, Score, Scorer, Targets, Task
from trainer.tasks import checks
from trainer.tasks.checks import IGNORED
from trainer.tasks.classification import only, some
from trainer.tasks.dense import over_positions
from trainer.tasks.entities import are_entity_tags, entities

ArrayTargets = NDArray[Any] | Mapping[str, NDArray[Any]]
SEQUENCE = {0: "batch", 1: "sequence"}


@dataclass(frozen=True)
class OfEachToken(Task):
    """Output `logits` (N, T, C); targets (N, T), whole numbers from 0 to C - 1 or the ignored one."""

    ignored: int = IGNORED

    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {"logits": SEQUENCE}  # type: ignore[misc]
    logits: ClassVar[Sequence[str]] = ("logits",)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return over_positions(outputs["logits"].movedim(-1, 1), checks.single(targets), self.ignored)

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropy against the teacher's probabilities at every token that is given."""
        found, wanted = outputs["logits"].flatten(0, 1), teacher["logits"].flatten(0, 1).softmax(dim=1)
        return F.cross_entropy(found, wanted, reduction="sum") / max(1, len(found))

    def counting(self, outputs: Outputs, targets: Targets) -> Outputs:
        """Logits (1, M, C) of the tokens whose label is not the ignored one: what anybody answers for padding is no lesson."""
        counts = checks.single(targets).long() != self.ignored
        return {**outputs, "logits": outputs["logits"][counts][None]}

    def looked_at(self, targets: Targets, seed: int | None = None) -> Tensor | None:
        return checks.single(targets).long() != self.ignored

    def check(self, outputs: Outputs, targets: Targets) -> None:
        logits, labels = checks.output(outputs, "logits", 3, "(N, tokens, classes)"), checks.single(targets)
        checks.whole_numbers(labels, logits.shape[2])
        checks.shape(labels, logits.shape[1:2], f"(N, {logits.shape[1]}), a label for each token")
        checks.labels(labels, logits.shape[2], self.ignored)

    @abstractmethod
    def scorer(self) -> Scorer: ...


@dataclass(frozen=True)
class TokenClassification(OfEachToken):
    """A class for each token; ignored are padding and the inner pieces of a word.

    `labels`: the names of the classes, in order; a training takes the data's. Where these are tags of entities (B-PER, I-PER,
    O) quality is the F1 of whole entities, micro-averaged, as conlleval and seqeval count them; else the share of the tokens
    that are right, which is their micro-averaged F1 too.
    """

    labels: tuple[str, ...] = ()

    kind: ClassVar[str] = "token-classification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def metric(self) -> str:  # type: ignore[override]
        return "entity_f1" if are_entity_tags(self.labels) else "token_accuracy"

    def with_labels(self, labels: Sequence[str]) -> Self:
        return replace(self, labels=tuple(labels)) if not self.labels and are_entity_tags(labels) else self

    def check(self, outputs: Outputs, targets: Targets) -> None:
        super().check(outputs, targets)
        classes = outputs["logits"].shape[2]
        if self.labels and len(self.labels) != classes:
            raise TrainerError(f"labels: {len(self.labels)} names; allowed are {classes}, one for each class of 'logits'")

    def scorer(self) -> Scorer:
        return _Entities(self.ignored, self.labels) if self.metric == "entity_f1" else TokenAccuracy(self.ignored)


class TokenAccuracy:
    def __init__(self, ignored: int) -> None:
        self.ignored = ignored
        self.right = self.count = 0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: ArrayTargets) -> None:
        labels = only(targets)
        counts = labels != self.ignored
        self.right += int((outputs["logits"].argmax(axis=-1) == labels)[counts].sum())
        self.count += int(counts.sum())

    def value(self) -> Score:
        accuracy = self.right / some(self.count)
        return Score(accuracy, {"token_accuracy": accuracy})


class _Entities(TokenAccuracy):
    def __init__(self, ignored: int, names: Sequence[str]) -> None:
        super().__init__(ignored)
        self.names = names
        self.hits = self.found = self.wanted = 0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: ArrayTargets) -> None:
        super().add(outputs, targets)
        labels = only(targets)
        for classes, wanted, counts in zip(outputs["logits"].argmax(axis=-1), labels, labels != self.ignored, strict=True):
            ours, truth = (entities([self.names[int(c)] for c in row[counts]]) for row in (classes, wanted))
            self.hits += len(ours & truth)
            self.found += len(ours)
            self.wanted += len(truth)

    def value(self) -> Score:
        _, metrics = super().value()
        precision, recall = (self.hits / count if count else 1.0 for count in (self.found, self.wanted))
        total = self.found + self.wanted
        f1 = 2 * self.hits / total if total else 1.0
        return Score(f1, {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall, **metrics})


EDGES = ("start", "end")


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Outputs `start_logits` and `end_logits`, each (N, T); targets `start` and `end`, each (N,): the first and the last token
    of the answer, or both the ignored label where it was cut off.

    Quality: the share of answers whose span is exactly right. The one that is taken has the highest sum of both logits of those
    that do not end before they start.
    """

    ignored: int = IGNORED

    kind: ClassVar[str] = "question-answering"
    metric: ClassVar[str] = "exact_match"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {f"{edge}_logits": SEQUENCE for edge in EDGES}  # type: ignore[misc]
    logits: ClassVar[Sequence[str]] = tuple(f"{edge}_logits" for edge in EDGES)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        wanted = _edges(targets)
        start, end = (over_positions(outputs[f"{edge}_logits"], wanted[edge], self.ignored) for edge in EDGES)
        return (start + end) / 2

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropies against the teacher's probabilities of where the answer starts and ends."""
        start, end = (F.cross_entropy(outputs[name], teacher[name].softmax(dim=1)) for name in self.logits)
        return (start + end) / 2

    def mean_over(self, targets: Targets, distilled: bool = False) -> Tensor | int:
        """Answers: a teacher is asked for those too that were cut off."""
        start = _edges(targets)["start"]
        return len(start) if distilled else (start != self.ignored).sum()

    def check(self, outputs: Outputs, targets: Targets) -> None:
        tokens = min(checks.output(outputs, name, 2, "(N, tokens)").shape[1] for name in self.logits)
        wanted = _edges(targets)
        for edge, places in wanted.items():
            what = f"targets {edge!r}"
            if places.dtype == torch.bool or places.is_floating_point() or places.is_complex():
                raise TrainerError(f"{what}: dtype {checks.dtype(places)}; allowed are whole numbers, places of tokens")
            if places.ndim != 1:
                raise TrainerError(f"{what}: shape {tuple(places.shape)}; allowed is (N,), one place for each example")
            wrong = ((places < 0) | (places >= tokens)) & (places != self.ignored)
            if bool(wrong.any()):
                example = int(wrong.nonzero()[0])
                raise TrainerError(
                    f"{what}: token {int(places[example])} of example {example}; allowed are 0 to {tokens - 1}, and "
                    f"{self.ignored}, which is ignored"
                )
        start, end = wanted["start"], wanted["end"]
        wrong = (start > end) | ((start == self.ignored) != (end == self.ignored))
        if bool(wrong.any()):
            example = int(wrong.nonzero()[0])
            raise TrainerError(
                f"targets: start {int(start[example])} and end {int(end[example])} of example {example}; allowed is an end "
                f"from the start on, or {self.ignored} for both"
            )

    def scorer(self) -> Scorer:
        return _Spans(self.ignored)


def _edges(targets: Targets) -> dict[str, Tensor]:
    if not isinstance(targets, Mapping) or set(targets) != set(EDGES):
        given = ", ".join(targets) if isinstance(targets, Mapping) else "one tensor"
        raise TrainerError(f"targets: {given} given; allowed are {' and '.join(EDGES)}, places of tokens")
    return {edge: targets[edge] for edge in EDGES}


class _Spans:
    def __init__(self, ignored: int) -> None:
        self.ignored = ignored
        self.exact = self.count = 0
        self.overlap = 0.0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: ArrayTargets) -> None:
        assert isinstance(targets, Mapping)
        counts = targets["start"] != self.ignored
        first, last = (targets[edge][counts].astype(np.int64) for edge in EDGES)
        starts, ends = outputs["start_logits"][counts], outputs["end_logits"][counts]
        end = (np.maximum.accumulate(starts, axis=1) + ends).argmax(axis=1)
        start = np.where(np.arange(starts.shape[1]) <= end[:, None], starts, -np.inf).argmax(axis=1)
        both = np.maximum(0, np.minimum(end, last) - np.maximum(start, first) + 1)
        self.exact += int(((start == first) & (end == last)).sum())
        self.overlap += float((2 * both / ((end - start + 1) + (last - first + 1))).sum())
        self.count += int(counts.sum())

    def value(self) -> Score:
        exact = self.exact / some(self.count)
        return Score(exact, {"exact_match": exact, "span_f1": self.overlap / self.count})


@dataclass(frozen=True)
class Embedding(Task):
    """Output `embedding` (N, d); targets (N, D) vectors of at least as many numbers, of which the first d count (Matryoshka
    representations: Kusupati et al. 2022, arXiv 2205.13147, section 3). Lengths do not count: loss is 1 - cosine.

    Quality: the mean cosine, 0 where that is below. Where the data have no vectors, targets are what the original model
    answers (`trainer.targets`).
    """

    kind: ClassVar[str] = "embedding"
    metric: ClassVar[str] = "cosine"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {"embedding": {0: "batch"}}  # type: ignore[misc]
    prefixes: ClassVar[Sequence[str]] = ("embedding",)
    answers_are_targets: ClassVar[bool] = True

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        found = outputs["embedding"]
        wanted = checks.single(targets)[:, : found.shape[1]].to(found.dtype)
        return 1 - F.cosine_similarity(found, wanted).mean()

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """1 - cosine with the first d numbers of the teacher's."""
        return self.loss(outputs, teacher["embedding"])

    def importance(self, outputs: Outputs, targets: Targets) -> Tensor:
        """How alike the batch's neighbours are: where targets are the model's own answers its loss has no slope."""
        found = outputs["embedding"]
        return F.cosine_similarity(found, found.detach().roll(1, dims=0)).mean()

    def check(self, outputs: Outputs, targets: Targets) -> None:
        wanted, least = checks.single(targets), checks.output(outputs, "embedding", 2, "(N, numbers)").shape[1]
        checks.finite(wanted)
        if wanted.ndim != 2 or wanted.shape[1] < least:
            raise TrainerError(f"targets: shape {tuple(wanted.shape)}; allowed is (N, {least}) or more numbers, a vector each")

    def scorer(self) -> Scorer:
        return _Cosine()


class _Cosine:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: ArrayTargets) -> None:
        found = outputs["embedding"].astype(np.float64)
        wanted = only(targets)[:, : found.shape[1]].astype(np.float64)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        self.total += float(((found * wanted).sum(axis=1) / np.maximum(lengths, 1e-12)).sum())
        self.count += len(found)

    def value(self) -> Score:
        mean = min(1.0, self.total / some(self.count))  # of a vector with itself a last bit more comes out
        return Score(max(0.0, mean), {"cosine": mean})
