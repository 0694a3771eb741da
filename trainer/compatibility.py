"""Whether data, model and task fit together: asked before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trainer.data.dataset import Examples, Samples, as_inputs
from trainer.nested import NestedModel
from trainer.options import FitOptions
from trainer.speed.layout import laid_out
from trainer.submodel import TrainerError
from trainer.task import Task, where
from trainer.tasks import Classification


@torch.no_grad()
def check_fits(nested: NestedModel, train: Examples, validation: Examples | None) -> None:
    """Raises TrainerError when the data are not what the model takes, or the targets not what the task asks for.

    Of data in memory all targets are looked at, of others the first two examples': the rest are when they are read.
    """
    for name, split in (("training", train), ("validation", validation)):
        if split is not None and len(split) < 2:
            raise TrainerError(f"{name} data: {len(split)} examples; allowed are 2 and more")
    nested.eval()
    device = next(nested.full.parameters()).device
    for name, split in (("training", train), ("validation", validation)):
        if split is None:
            continue
        batch = split.batch(torch.arange(2))
        try:
            inputs = as_inputs(batch.inputs, nested.input_names)
            _check_shapes(nested, inputs)
        except TrainerError as error:
            raise TrainerError(f"{name} data: {error}") from None
        try:
            outputs = nested.outputs(laid_out(inputs, device, False), nested.family.smallest)
        except TrainerError:
            raise
        except Exception as error:  # whatever the family's own code raises
            raise TrainerError(f"{name} data: the model does not take them: {where(error)}") from error
        try:
            nested.family.task.check(outputs, split.targets if isinstance(split, Samples) else batch.targets)
        except TrainerError as error:
            raise TrainerError(f"{name} data: {str(error).removeprefix('targets: ')}") from None


def _check_shapes(nested: NestedModel, inputs: Mapping[str, Tensor]) -> None:
    for name, example in nested.family.example_inputs(2).items():
        found = inputs[name]
        free = (nested.family.dynamic_axes or {}).get(name, {})
        sizes = [None if axis in free else size for axis, size in enumerate(example.shape)]
        if len(sizes) != found.ndim or any(s not in (None, f) for s, f in zip(sizes[1:], found.shape[1:], strict=True)):
            raise TrainerError(
                f"input {name!r} has examples of shape {tuple(found.shape[1:])}; the model takes {tuple(example.shape[1:])}"
            )
        if found.is_floating_point() != example.is_floating_point():  # token ids are no waveform
            dtypes = [str(t.dtype).removeprefix("torch.") for t in (found, example)]
            raise TrainerError(f"input {name!r} holds {dtypes[0]}; the model takes {dtypes[1]}")


def task_of(nested: NestedModel, options: FitOptions) -> Task:
    """The family's task, with the label smoothing of the options."""
    task = nested.family.task
    if not options.label_smoothing:
        return task
    if not isinstance(task, Classification):
        raise TrainerError(f"label_smoothing = {options.label_smoothing}: allowed for classification; the task is {task.kind}")
    return replace(task, label_smoothing=options.label_smoothing)
