"""Accuracy of a sub-model in torch."""

from __future__ import annotations

import torch

from trainer.data import Examples, batches_of
from trainer.nested import NestedModel
from trainer.submodel import SubModel

BATCH = 512


@torch.inference_mode()
def accuracy_of(nested: NestedModel, sub: SubModel, examples: Examples) -> float:
    """Share of examples (0 to 1) whose largest logit is the label's; the model must be in eval mode, calibrated."""
    device = next(nested.full.parameters()).device
    right = 0
    for inputs, labels in batches_of(examples, BATCH):
        logits = nested(tuple(t.to(device) for t in inputs), sub)
        right += int((logits.argmax(dim=1).cpu() == labels).sum())
    return right / len(examples)
