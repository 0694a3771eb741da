"""The inputs of the self-test, and what torch answers to them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.bundle import BundleError
from exporter.scoring import as_feed
from exporter.template import dynamic_axes
from trainer.data.dataset import Examples
from trainer.nested import NestedModel
from trainer.submodel import SubModel, TrainerError
from trainer.task import where

SELFTEST_EXAMPLES = 2
INT8_SELFTEST_EXAMPLES = 8
"""Where there is int8: of so many the distance from fp32 is, within 1 %, that of other examples."""

Outputs = dict[str, NDArray[Any]]


class ExportError(BundleError):
    """An export that was refused or stopped; nothing is left behind."""


def selftest_inputs(nested: NestedModel, examples: Examples | None, count: int = SELFTEST_EXAMPLES) -> Outputs:
    """The first test examples' inputs, `count` if there are so many, or the family's example inputs where there are none, by
    name."""
    names = nested.input_names
    if examples is None:
        return as_feed(nested.family.example_inputs(count), names)
    if len(examples) < SELFTEST_EXAMPLES:
        raise ExportError(f"test data: {len(examples)} examples; allowed are {SELFTEST_EXAMPLES} and more")
    try:
        return as_feed(examples.batch(torch.arange(min(count, len(examples)))).inputs, names)
    except TrainerError as error:
        raise ExportError(f"test data: {error}") from None


def other_sizes(nested: NestedModel, inputs: Outputs) -> Outputs | None:
    """The same with every free axis but the batch of half its size, or where the network does not take that of twice: what
    tracing made constant shows there. None where there is no such axis.

    Raises ExportError when the network takes neither: the axis is not free.
    """
    free = dynamic_axes(nested, nested.family.example_inputs(1))
    axes = {name: [axis for axis in free.get(name, {}) if axis > 0] for name in inputs}
    if not any(axes.values()):
        return None
    smallest = nested.family.smallest
    for resized in ({n: _halved(a, axes[n]) for n, a in inputs.items()}, {n: _doubled(a, axes[n]) for n, a in inputs.items()}):
        try:
            torch_outputs(nested, smallest, resized)
        except Exception as error:  # whatever the family's own code raises
            refused = where(error)
        else:
            return resized
    names = ", ".join(dict.fromkeys(free[name][axis] for name in axes for axis in axes[name]))
    raise ExportError(f"free axes {names}: the network takes inputs neither of half nor of twice the size: {refused}")


@torch.no_grad()
def torch_outputs(
    nested: NestedModel, sub: SubModel, inputs: Outputs, within: AbstractContextManager[Any] | None = None
) -> Outputs:
    """What a sub-model answers in torch, by name."""
    device = next(nested.full.parameters()).device
    placed, parameters = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}, nested.view(sub)
    with within or nullcontext():
        outputs = nested.call(sub, placed, parameters)
    return {name: output.cpu().numpy() for name, output in outputs.items()}


def _halved(array: NDArray[Any], axes: list[int]) -> NDArray[Any]:
    for axis in axes:
        array = np.take(array, range(max(1, array.shape[axis] // 2)), axis)
    return np.ascontiguousarray(array)


def _doubled(array: NDArray[Any], axes: list[int]) -> NDArray[Any]:
    for axis in axes:
        array = np.concatenate([array, array], axis)
    return array
