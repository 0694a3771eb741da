"""What comes next: `language-modelling`.

Shapes: N batch, T tokens, V vocabulary, M positions that count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F

from trainer.submodel import TrainerError
from trainer.task import Outputs, Score, Scorer, Targets
from trainer.tasks import checks
from trainer.tasks.classification import only, some
from trainer.tasks.tokens import ArrayTargets, OfEachToken

CHUNK = 2**22  # logits whose exponentials are computed together


@dataclass(frozen=True)
class LanguageModelling(OfEachToken):
    """Targets: of each position the token that follows it, or the ignored label.

    Quality: exp(-loss), the geometric mean of the probabilities given to the tokens that came; 1 / perplexity.

    `positions`: of each sequence so many are looked at in a training step, others at every step; 0: all. The head costs as much
    as several layers, and neighbours tell much the same. Scores are of all.
    """

    positions: int = 0

    kind: ClassVar[str] = "language-modelling"
    metric: ClassVar[str] = "token_probability"
    data_options: ClassVar[Mapping[str, Any]] = {"next_token": True}

    def __post_init__(self) -> None:
        if type(self.positions) is not int or self.positions < 0:
            raise TrainerError(f"positions = {self.positions!r}: allowed are whole numbers from 0, which means all")

    def looked_at(self, targets: Targets, seed: int | None = None) -> Tensor | None:
        labels = checks.single(targets)
        counts = labels.long() != self.ignored
        if seed is None or not self.positions or self.positions >= labels.shape[1]:
            return counts
        luck = torch.rand(labels.shape, generator=Generator().manual_seed(seed)).to(labels.device).masked_fill(~counts, -1)
        chosen = torch.zeros_like(counts).scatter_(1, luck.topk(self.positions, dim=1).indices, True)
        return chosen & counts

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        labels = checks.single(targets).long().flatten()
        total = F.cross_entropy(outputs["logits"].flatten(0, 1), labels, ignore_index=self.ignored, reduction="sum")
        return total / (labels != self.ignored).sum().clamp_min(1)

    def scorer(self) -> Scorer:
        return Likelihood(self.ignored)


class Likelihood:
    """The score of a language model, batch by batch. `compare` adds how often it and another one, of the full model, think the
    same token likeliest: `agreement`."""

    def __init__(self, ignored: int) -> None:
        self.ignored = ignored
        self.loss = 0.0
        self.right = self.count = self.alike = self.compared = 0
        self.likeliest: NDArray[Any] = np.zeros(0, dtype=np.int64)
        """(M,) of the last batch."""

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: ArrayTargets) -> None:
        labels = only(targets)
        counts = labels != self.ignored
        logits, labels = outputs["logits"], labels[counts].astype(np.int64)
        logits = logits.reshape(-1, logits.shape[-1])
        if not counts.all():
            logits = logits[counts.reshape(-1)]
        self.likeliest = logits.argmax(axis=1)
        self.right += int((self.likeliest == labels).sum())
        self.count += len(labels)
        rows = max(1, CHUNK // logits.shape[1])
        for begin in range(0, len(labels), rows):
            part, wanted = logits[begin : begin + rows], labels[begin : begin + rows]
            highest = part[np.arange(len(part)), self.likeliest[begin : begin + rows]].astype(np.float64)
            exponentials = np.exp(part - highest[:, None].astype(part.dtype))  # in their own precision: half as many bytes
            normaliser = np.log(exponentials.sum(axis=1, dtype=np.float64)) + highest
            self.loss += float((normaliser - part[np.arange(len(part)), wanted]).sum())

    def compare(self, full: Likelihood) -> None:
        """With what the full model said of the last batch."""
        self.alike += int((self.likeliest == full.likeliest).sum())
        self.compared += len(self.likeliest)

    def value(self) -> Score:
        accuracy, loss = self.right / some(self.count), self.loss / some(self.count)
        quality = float(np.exp(-loss))
        metrics = {"token_probability": quality, "perplexity": float(np.exp(loss)), "loss": loss, "token_accuracy": accuracy}
        if self.compared:
            metrics["agreement"] = self.alike / self.compared
        return Score(quality, metrics)
