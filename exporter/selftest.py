"""The inputs of the self-test, and what torch answers to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.bundle import BundleError
from exporter.bundle.session import relative_error, run_session
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
    both = [name for name in names if name in nested.family.task.outputs]
    if both:
        raise ExportError(f"input {both[0]!r} has the name of an output; allowed are names of their own")
    if examples is None:
        return as_feed(nested.family.example_inputs(count), names)
    if len(examples) < SELFTEST_EXAMPLES:
        raise ExportError(f"test data: {len(examples)} examples; allowed are {SELFTEST_EXAMPLES} and more")
    try:
        return as_feed(examples.batch(torch.arange(min(count, len(examples)))).inputs, names)
    except TrainerError as error:
        raise ExportError(f"test data: {error}") from None


@dataclass(frozen=True)
class Others:
    """Inputs that a graph is compared with torch on besides the self-test's: what tracing made constant shows there."""

    what: str  # in words, for an error
    inputs: Outputs


def other_inputs(nested: NestedModel, inputs: Outputs) -> list[Others]:
    """The same with other values, with other masks, and of a single example, if the network takes them, and for every free axis
    but the batch with another size of it.

    Raises ExportError when the network takes neither half of a free axis nor twice of it: it is not free.
    """
    values = {name: _other_values(array) for name, array in inputs.items()}
    masks = {name: _other_mask(array) if _is_mask(array) else array for name, array in inputs.items()}
    tried = [Others("other values", values)]
    if any(not np.array_equal(masks[name], array) for name, array in inputs.items()):
        tried.append(Others("other masks", masks))  # examples of one length have one of ones: one that is not read would pass
    free = dynamic_axes(nested, nested.family.example_inputs(1))
    batches = [name for name in inputs if 0 in free.get(name, {})]
    tried.append(Others("a single example", {**inputs, **{name: inputs[name][:1] for name in batches}}))
    found = [others for others in tried if not _refusal(nested, others.inputs)]
    axes = {(name, axis): called for name in inputs for axis, called in free.get(name, {}).items() if axis > 0}
    names = list(dict.fromkeys(axes.values()))
    refused = ""
    for called in names:  # by itself, so that no ratio of two stays what it was; or all, where they are to be equal
        fitting: list[Outputs] = []
        for chosen in ({called}, set(names)):
            places = [place for place, own in axes.items() if own in chosen]
            for resize in (_halved, _doubled):  # both: a length that became constant may cut, but not lengthen
                resized = _resized(inputs, places, resize)
                if all(resized[name].shape == inputs[name].shape for name, _ in places):
                    continue
                refused = _refusal(nested, resized)
                if not refused:
                    fitting.append(resized)
            if fitting:
                break
        else:
            raise ExportError(f"free axis {called}: the network takes inputs neither of half nor of twice the size: {refused}")
        found += [Others(f"another size of {called!r}", one) for one in fitting]
    return found


def problem_of(session: ort.InferenceSession, inputs: Outputs, expected: Outputs, allowed: float, what: str = "") -> str:
    """How a graph's answers differ from torch's, or that it does not run; empty if neither. `what`: other inputs, in words.

    Where torch's answer to other inputs is no number nothing is compared: they need not be meaningful.
    """
    on = f"on inputs with {what} " if what else ""
    try:
        outputs = run_session(session, inputs)
    except Exception as refused:  # ONNX Runtime has one exception type per status code
        return f"{on}the graph does not run: {refused}"
    if what:
        numbers = {name: np.isfinite(array) for name, array in expected.items()}
        same = all(name in outputs and outputs[name].shape == array.shape for name, array in expected.items())
        if same:
            outputs = {name: np.where(kept, outputs[name], 0) for name, kept in numbers.items()}
            expected = {name: np.where(kept, expected[name], 0) for name, kept in numbers.items()}
    error = relative_error(outputs, expected)
    if error <= allowed:
        return ""
    for name, array in expected.items():
        if outputs[name].shape != array.shape:
            return f"{on}the graph gives {name!r} of shape {outputs[name].shape}, torch {array.shape}"
    return f"{on}the graph differs from torch by {error:.2e} relative to the largest output; allowed is {allowed:.0e}"


def _refusal(nested: NestedModel, inputs: Outputs) -> str:
    """Why the smallest or the largest sub-model does not take these inputs; empty if both do."""
    try:
        for sub in (nested.family.smallest, nested.family.largest):
            torch_outputs(nested, sub, inputs)
    except Exception as error:  # whatever the family's own code raises
        return where(error)
    return ""


@torch.no_grad()
def torch_outputs(
    nested: NestedModel, sub: SubModel, inputs: Outputs, within: AbstractContextManager[Any] | None = None
) -> Outputs:
    """What a sub-model answers in torch, by name."""
    device = next(nested.full.parameters()).device
    placed, parameters = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}, nested.view(sub)
    with within or nullcontext():
        outputs = nested.call(sub, placed, parameters)
    return {name: _as_array(name, output) for name, output in outputs.items()}


def _as_array(name: str, output: Tensor) -> NDArray[Any]:
    try:
        array: NDArray[Any] = output.cpu().numpy()
    except TypeError:
        kind = str(output.dtype).removeprefix("torch.")
        raise ExportError(f"output {name!r}: holds {kind}, which devices do not have; allowed is float32") from None
    return array


def _other_values(array: NDArray[Any]) -> NDArray[Any]:
    """All in reverse, and numbers of the other sign: as valid as token ids and masks were, a branch on a sum is the other."""
    reverse = np.flip(array)
    return np.ascontiguousarray(-reverse if reverse.dtype.kind == "f" else reverse)


def _is_mask(array: NDArray[Any]) -> bool:
    """Whether it says yes or no of every place: an attention mask, or which of two texts a token is of."""
    return array.ndim > 1 and array.dtype.kind in "iub" and bool(np.isin(array, (0, 1)).all())


def _other_mask(array: NDArray[Any]) -> NDArray[Any]:
    """All ones, or where it is that already (or all the same) the second half of the last axis the other way round."""
    if array.any() and not array.all():
        return np.ones_like(array)
    other = array.copy()
    half = (array.shape[-1] + 1) // 2
    other[..., half:] = 1 - other[..., half:]
    return other


def _resized(inputs: Outputs, places: list[tuple[str, int]], resize: Callable[[NDArray[Any], int], NDArray[Any]]) -> Outputs:
    found = dict(inputs)
    for name, axis in places:
        found[name] = np.ascontiguousarray(resize(found[name], axis))
    return found


def _halved(array: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.take(array, range(max(1, array.shape[axis] // 2)), axis)


def _doubled(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """With others of its values: a mean over the same twice would be what it was."""
    return np.concatenate([array, _other_values(array)], axis)
