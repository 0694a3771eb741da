"""Scores of sub-models in torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Examples, as_inputs, each
from trainer.data.loading import batches_of, reads_files
from trainer.nested import NestedModel
from trainer.speed.layout import laid_out, suits_channels_last
from trainer.speed.sharing import sharing
from trainer.submodel import SubModel
from trainer.task import Score, Targets

BATCH = 512
FILES_BATCH = 64  # of what is read from files: worker processes keep several batches ready


@torch.no_grad()
def scores_of(nested: NestedModel, submodels: Iterable[SubModel], examples: Examples) -> dict[SubModel, Score]:
    """For each sub-model what the task's scorer says of these examples.

    The model must be in eval mode and calibrated for these sub-models.
    """
    device = next(nested.full.parameters()).device
    as_channels_last = suits_channels_last(nested)
    task = nested.family.task
    scorers = {sub: task.scorer() for sub in submodels}
    for batch in batches_of(examples, FILES_BATCH if reads_files(examples) else BATCH):
        placed = laid_out(as_inputs(batch.inputs, nested.input_names), device, as_channels_last)
        targets = as_arrays(batch.targets)
        shared = sharing(device)
        for sub, scorer in scorers.items():
            with shared:
                outputs = nested.outputs(placed, sub)
            scorer.add({name: output.float().cpu().numpy() for name, output in outputs.items()}, targets)
    return {sub: scorer.value() for sub, scorer in scorers.items()}


def as_arrays(targets: Targets) -> NDArray[Any] | Mapping[str, NDArray[Any]]:
    """Targets as a scorer takes them."""

    def array(tensor: Tensor) -> NDArray[Any]:
        return tensor.cpu().numpy()

    arrays: NDArray[Any] | Mapping[str, NDArray[Any]] = each(targets, array)
    return arrays
