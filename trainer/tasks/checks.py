"""What the checks of targets have in common: each raises TrainerError naming the field, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.submodel import TrainerError
from trainer.task import Outputs, Targets

IGNORED = -100
"""The label of a position that counts for nothing, as in torch's cross-entropy."""


def single(targets: Targets) -> Tensor:
    """The targets of a task that has one tensor of them."""
    if isinstance(targets, Mapping):
        if len(targets) != 1:
            raise TrainerError(f"targets: {', '.join(targets) or 'none'} given; allowed is one tensor")
        return next(iter(targets.values()))
    return targets


def output(outputs: Outputs, name: str, axes: int, what: str) -> Tensor:
    """The output of that name, which must have so many axes."""
    found = outputs[name]
    if found.ndim != axes:
        raise TrainerError(f"output {name!r}: shape {tuple(found.shape)}; allowed is {what}")
    return found


def shape(targets: Tensor, rest: Sequence[int], what: str) -> None:
    """Of the axes after the batch."""
    if tuple(targets.shape[1:]) != tuple(rest):
        raise TrainerError(f"targets: shape {tuple(targets.shape)}; allowed is {what}")


def whole_numbers(targets: Tensor, classes: int) -> None:
    """What may be a class: asked before the shape, because other numbers are another task's."""
    if classes < 2:
        raise TrainerError(f"output 'logits': {classes} class; allowed are two and more (for a number: --task regression)")
    if targets.dtype == torch.bool or targets.is_floating_point() or targets.is_complex():
        raise TrainerError(
            f"targets: dtype {dtype(targets)}; allowed are whole numbers from 0 to {classes - 1}, the classes' "
            "(for other numbers: --task regression or multi-label)"
        )


def labels(targets: Tensor, classes: int, ignored: int | None = None) -> None:
    """Whole numbers from 0 to classes - 1, or the ignored one."""
    whole_numbers(targets, classes)
    if targets.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch does not compare these
        targets = targets.long()
    held = torch.iinfo(targets.dtype)  # torch compares in the tensor's own type: of bytes, 156 would equal -100
    wrong = torch.zeros_like(targets, dtype=torch.bool)
    if held.min < 0:
        wrong |= targets < 0
    if held.max >= classes:
        wrong |= targets >= classes
    if ignored is not None and held.min <= ignored <= held.max:
        wrong &= targets != ignored
    if not bool(wrong.any()):
        return
    place = wrong.nonzero()[0]
    position = int(place[0]) if len(place) == 1 else tuple(int(p) for p in place)
    or_ignored = f", and {ignored}, which is ignored" if ignored is not None else ""
    raise TrainerError(
        f"targets: label {int(targets[tuple(place)])} at position {position}; allowed are 0 to {classes - 1}{or_ignored}"
    )


def finite(targets: Tensor) -> None:
    """Real numbers."""
    if not targets.is_floating_point():
        raise TrainerError(f"targets: dtype {dtype(targets)}; allowed are float32 and other floating point numbers")
    wrong = ~torch.isfinite(targets)
    if bool(wrong.any()):
        place = tuple(int(p) for p in wrong.nonzero()[0])
        raise TrainerError(f"targets: {float(targets[place])} at position {place}; allowed are finite numbers")


def dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
