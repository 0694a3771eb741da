"""`classification`: one of several classes. `multi-label`: any number of them.

Shapes: N batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.submodel import TrainerError
from trainer.task import Outputs, Score, Scorer, Targets, Task
from trainer.tasks import checks


@dataclass(frozen=True)
class Classification(Task):
    """Output `logits` (N, C); targets (N,), whole numbers from 0 to C - 1. Quality: accuracy."""

    label_smoothing: float = 0.0

    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {"logits": {0: "batch"}}  # type: ignore[misc]
    logits: ClassVar[Sequence[str]] = ("logits",)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise TrainerError(f"label_smoothing = {self.label_smoothing}: allowed are values from 0 to below 1")

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        labels = checks.single(targets).long()
        return F.cross_entropy(outputs["logits"], labels, label_smoothing=self.label_smoothing)

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropy against the teacher's probabilities (Yu & Huang 2019, arXiv 1903.05134, section 3.2)."""
        return F.cross_entropy(outputs["logits"], teacher["logits"].softmax(dim=1))

    def check(self, outputs: Outputs, targets: Targets) -> None:
        classes = checks.output(outputs, "logits", 2, "(N, classes)").shape[1]
        labels = checks.single(targets)
        checks.whole_numbers(labels, classes)
        checks.shape(labels, (), "(N,), one label for each example")
        checks.labels(labels, classes)

    def scorer(self) -> Scorer:
        return _Accuracy()


class _Accuracy:
    def __init__(self) -> None:
        self.right = self.count = 0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        logits, labels = outputs["logits"], only(targets)
        self.right += int((logits.argmax(axis=1) == labels).sum())
        self.count += len(labels)

    def value(self) -> Score:
        accuracy = self.right / some(self.count)
        return Score(accuracy, {"accuracy": accuracy})


@dataclass(frozen=True)
class MultiLabel(Task):
    """Output `logits` (N, C), above 0 for a class that is there; targets (N, C), 0 or 1. Quality: micro-averaged F1."""

    kind: ClassVar[str] = "multi-label"
    metric: ClassVar[str] = "f1"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {"logits": {0: "batch"}}  # type: ignore[misc]
    logits: ClassVar[Sequence[str]] = ("logits",)
    class_per_target: ClassVar[bool] = True

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        logits = outputs["logits"]
        return F.binary_cross_entropy_with_logits(logits, checks.single(targets).to(logits.dtype))

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropy against the teacher's probability of every class."""
        return F.binary_cross_entropy_with_logits(outputs["logits"], teacher["logits"].sigmoid())

    def check(self, outputs: Outputs, targets: Targets) -> None:
        classes = checks.output(outputs, "logits", 2, "(N, classes)").shape[1]
        wanted = checks.single(targets)
        checks.shape(wanted, (classes,), f"(N, {classes}), a 0 or 1 for each class")
        wrong = (wanted != 0) & (wanted != 1)
        if bool(wrong.any()):
            place = tuple(int(p) for p in wrong.nonzero()[0])
            raise TrainerError(f"targets: {wanted[place].item()} at position {place}; allowed are 0 and 1")

    def scorer(self) -> Scorer:
        return _F1()


class _F1:
    def __init__(self) -> None:
        self.count = self.exact = 0
        self.hits: Any = 0  # (C,): true positives, then found, then wanted
        self.found: Any = 0
        self.wanted: Any = 0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        found, wanted = outputs["logits"] > 0, only(targets).astype(bool)
        self.hits = self.hits + (found & wanted).sum(axis=0)
        self.found = self.found + found.sum(axis=0)
        self.wanted = self.wanted + wanted.sum(axis=0)
        self.exact += int((found == wanted).all(axis=1).sum())
        self.count += len(wanted)

    def value(self) -> Score:
        some(self.count)
        sums = self.found + self.wanted
        each = np.divide(2 * self.hits, sums, out=np.ones(len(sums)), where=sums > 0)  # of a class that never occurs: 1
        total = int(sums.sum())
        micro = 2 * int(self.hits.sum()) / total if total else 1.0
        return Score(micro, {"f1": micro, "macro_f1": float(each.mean()), "exact_match": self.exact / self.count})


def only(targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The one array of targets."""
    return next(iter(targets.values())) if isinstance(targets, Mapping) else targets


def some(count: int) -> int:
    """The count, which must not be 0."""
    if not count:
        raise TrainerError("score: no example was added; allowed is at least one")
    return count
