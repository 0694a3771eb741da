"""A class for every pixel: `segmentation`.

Shapes: N batch, C classes, H height, W width. Targets may hold an ignored label (-100).
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
        return over_positions(outputs["logits"], checks.single(targets), self.ignored)

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Cross-entropy against the teacher's probabilities at every pixel."""
        return F.cross_entropy(outputs["logits"], teacher["logits"].softmax(dim=1))

    def mean_over(self, targets: Targets, distilled: bool = False) -> Tensor | int:
        """Pixels: a teacher is asked about all of them."""
        labels = checks.single(targets).long()
        return labels.numel() if distilled else (labels != self.ignored).sum()

    def check(self, outputs: Outputs, targets: Targets) -> None:
        logits, labels = checks.output(outputs, "logits", 4, "(N, classes, height, width)"), checks.single(targets)
        checks.whole_numbers(labels, logits.shape[1])
        checks.shape(labels, logits.shape[2:], f"(N, {logits.shape[2]}, {logits.shape[3]}), a label for each pixel")
        checks.labels(labels, logits.shape[1], self.ignored)

    def scorer(self) -> Scorer:
        return _Overlap(self.ignored)


def over_positions(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
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
