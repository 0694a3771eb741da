"""Accuracy of sub-models in torch."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainer.data import Examples, batches_of
from trainer.layout import laid_out, suits_channels_last
from trainer.nested import NestedModel
from trainer.sharing import sharing
from trainer.submodel import SubModel

BATCH = 512


@torch.no_grad()
def accuracies_of(nested: NestedModel, submodels: Iterable[SubModel], examples: Examples) -> dict[SubModel, float]:
    """For each sub-model the share of examples (0 to 1) whose largest logit is the label's.

    The model must be in eval mode and calibrated for these sub-models.
    """
    device = next(nested.full.parameters()).device
    as_channels_last = suits_channels_last(nested)
    right = dict.fromkeys(submodels, 0)
    for inputs, labels in batches_of(examples, BATCH):
        placed, labels = laid_out(inputs, device, as_channels_last), labels.to(device)
        shared = sharing(device)
        for sub in right:
            with shared:
                right[sub] += int((nested(placed, sub).argmax(dim=1) == labels).sum())
    return {sub: count / len(examples) for sub, count in right.items()}
