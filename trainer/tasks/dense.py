"""A class for every position: `segmentation` of pixels, `token-classification`, `language-modelling` (the next token's).

Shapes: N batch, C classes or vocabulary, H height, W width, T tokens. Targets may hold an ignored label (-100).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.task import Outputs, Score, Scorer, Targets, Task
from trainer.tasks import checks
from trainer.tasks.checks import IGNORED
from trainer.tasks.classification import only, some


@dataclass(frozen=True)
class Segmentation(Task):
    """Output `logits` (N, C, H, W); targets (N, H, W), whole numbers from 0 to C - 1 or the ignored one.

    Quality: mean intersection over union of the classes that occur.
    """

    ignored: int = IGNORED

    kind: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "mean_iou"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {"logits": {0: "batch", 2: "height", 3: "width"}}  # type: ignore[misc]
    logits: ClassVar[Sequence[str]] = ("logits",)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return _cross_entropy(outputs["logits"], checks.single(targets), self.ignored)

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropy against the teacher's probabilities at every pixel."""
        return F.cross_entropy(outputs["logits"], teacher["logits"].softmax(dim=1))

    def check(self, outputs: Outputs, targets: Targets) -> None:
        logits, labels = checks.output(outputs, "logits", 4, "(N, classes, height, width)"), checks.single(targets)
        checks.whole_numbers(labels, logits.shape[1])
        checks.shape(labels, logits.shape[2:], f"(N, {logits.shape[2]}, {logits.shape[3]}), a label for each pixel")
        checks.labels(labels, logits.shape[1], self.ignored)

    def scorer(self) -> Scorer:
        return _Overlap(self.ignored)


@dataclass(frozen=True)
class TokenClassification(Task):
    """Output `logits` (N, T, C); targets (N, T), whole numbers from 0 to C - 1 or the ignored one (padding, inner word pieces).

    Quality: the share of the tokens that count which are right.
    """

    ignored: int = IGNORED

    kind: ClassVar[str] = "token-classification"
    metric: ClassVar[str] = "token_accuracy"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {"logits": {0: "batch", 1: "sequence"}}  # type: ignore[misc]
    logits: ClassVar[Sequence[str]] = ("logits",)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return _cross_entropy(outputs["logits"].movedim(-1, 1), checks.single(targets), self.ignored)

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropy against the teacher's probabilities at every token, padding included."""
        return F.cross_entropy(outputs["logits"].movedim(-1, 1), teacher["logits"].movedim(-1, 1).softmax(dim=1))

    def check(self, outputs: Outputs, targets: Targets) -> None:
        logits, labels = checks.output(outputs, "logits", 3, "(N, tokens, classes)"), checks.single(targets)
        checks.whole_numbers(labels, logits.shape[2])
        checks.shape(labels, logits.shape[1:2], f"(N, {logits.shape[1]}), a label for each token")
        checks.labels(labels, logits.shape[2], self.ignored)

    def scorer(self) -> Scorer:
        return _TokenAccuracy(self.ignored)


@dataclass(frozen=True)
class LanguageModelling(TokenClassification):
    """Output `logits` (N, T, C); targets (N, T): of each position the token that follows it, or the ignored label.

    Quality: exp(-loss), the geometric mean of the probabilities given to the tokens that came; 1 / perplexity.
    """

    kind: ClassVar[str] = "language-modelling"
    metric: ClassVar[str] = "token_probability"

    def scorer(self) -> Scorer:
        return _Likelihood(self.ignored)


def _cross_entropy(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """The mean over the positions that count; 0 where none does. Logits (N, C, …), labels (N, …)."""
    labels = labels.long()
    total = F.cross_entropy(logits, labels, ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp_min(1)


class _Overlap:
    def __init__(self, ignored: int) -> None:
        self.ignored = ignored
        self.confusion: Any = 0  # (C, C): wanted by found

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        logits, labels = outputs["logits"], only(targets)
        classes, counts = logits.shape[1], labels != self.ignored
        pairs = labels[counts].astype(np.int64) * classes + logits.argmax(axis=1)[counts]
        self.confusion = self.confusion + np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def value(self) -> Score:
        total = some(int(np.sum(self.confusion)))
        both = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - both
        mean = float((both[union > 0] / union[union > 0]).mean())
        return Score(mean, {"mean_iou": mean, "pixel_accuracy": float(both.sum() / total)})


class _TokenAccuracy:
    def __init__(self, ignored: int) -> None:
        self.ignored = ignored
        self.right = self.count = 0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        labels = only(targets)
        counts = labels != self.ignored
        self.right += int((outputs["logits"].argmax(axis=-1) == labels)[counts].sum())
        self.count += int(counts.sum())

    def value(self) -> Score:
        accuracy = self.right / some(self.count)
        return Score(accuracy, {"token_accuracy": accuracy})


class _Likelihood(_TokenAccuracy):
    def __init__(self, ignored: int) -> None:
        super().__init__(ignored)
        self.loss = 0.0

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        super().add(outputs, targets)
        logits, labels = outputs["logits"].astype(np.float64), only(targets)
        counts = labels != self.ignored
        logits, labels = logits[counts], labels[counts].astype(np.int64)
        highest = logits.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        self.loss += float((normaliser - logits[np.arange(len(labels)), labels]).sum())

    def value(self) -> Score:
        accuracy, loss = self.right / some(self.count), self.loss / some(self.count)
        quality = float(np.exp(-loss))
        metrics = {"token_probability": quality, "perplexity": float(np.exp(loss)), "loss": loss, "token_accuracy": accuracy}
        return Score(quality, metrics)
