"""What a decoder's graph is worth: the task's score on the test split, and how often it says what the full model does.

Shapes: N examples, T tokens, R of them whose target counts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from exporter.bundle.decoding import DecoderCall
from exporter.decoder.store import Array
from exporter.selftest import ExportError
from trainer.data.dataset import Examples
from trainer.data.loading import batches_of
from trainer.task import Score, Task
from trainer.tasks.checks import IGNORED

QUALITY_TOKENS = 8192
"""Of the test split, where nobody says how many: a size of 135 M parameters reads so many in half a minute."""
_ROWS = 128  # of logits at a time: those of 49,152 tokens of the vocabulary are 25 MB


class HeldOut:
    """Texts of the test split, evenly spaced, with so many tokens that count (0: all). `full`: what the full model says of
    each, once it was asked."""

    def __init__(self, examples: Examples, task: Task, tokens: int = QUALITY_TOKENS) -> None:
        if len(examples) == 0:
            raise ExportError("test data: no examples; allowed are 1 and more")
        self.task, self.tokens = task, 0
        self.texts: list[tuple[Array, Array]] = []  # token ids (1, T), targets (1, T)
        for ids, targets in _spread(examples):
            if tokens and self.tokens >= tokens:
                break
            counts = int((targets != IGNORED).sum())
            if counts:
                self.texts.append((ids, targets))
                self.tokens += counts
        if not self.tokens:
            raise ExportError("test data: no token has a target; allowed are texts of two tokens and more")
        self.full: list[Array] | None = None

    def score(self, session: ort.InferenceSession, *, full: bool = False) -> Score:
        """Of a graph; with `agreement` where the full model's was asked before: how often both think the same token likeliest.
        `full`: it is the full model's."""
        scorer, said = self.task.scorer(), []
        for ids, targets in self.texts:
            rows = np.flatnonzero(targets[0] != IGNORED).tolist()
            logits = DecoderCall(session)(ids, [ids.shape[1]], rows)
            for begin in range(0, len(rows), _ROWS):
                part = slice(begin, begin + _ROWS)
                scorer.add({"logits": logits[:, part]}, targets[:, rows[part]])
            said.append(logits[0].argmax(axis=1))
        score = scorer.value()
        if self.full is None:
            if not full:
                return score
            self.full = said
        same = sum(int((own == full).sum()) for own, full in zip(said, self.full, strict=True))
        return Score(score.quality, {**score.metrics, "agreement": same / self.tokens})


def _spread(examples: Examples) -> Iterator[tuple[Array, Array]]:
    """Texts one by one, such that the first so many of them lie evenly in the whole, whatever their number."""
    for index in _van_der_corput(len(examples)):
        batch = next(iter(batches_of(examples, 1, torch.tensor([index]), workers=0)))
        inputs: Any = batch.inputs
        ids, targets = inputs["input_ids"].numpy().astype(np.int64), batch.targets.numpy()  # type: ignore[union-attr]
        if (mask := inputs.get("attention_mask")) is not None:
            kept = int(mask.sum())
            if not bool(mask[0, :kept].all()):
                raise ExportError("test data: attention_mask leaves out tokens before others; allowed is padding at the end")
            ids, targets = ids[:, :kept], targets[:, :kept]
        yield ids, targets


def _van_der_corput(count: int) -> Sequence[int]:
    """0 to count - 1 by their bits in reverse."""
    bits = max(1, (count - 1).bit_length())
    return [place for place in (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)) if place < count]
