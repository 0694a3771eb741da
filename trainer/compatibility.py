"""Whether data, model and task fit together: asked before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from trainer.data.dataset import Batch, Examples, Samples, as_inputs, each
from trainer.evaluate import add, as_arrays, check_score
from trainer.nested import NestedModel, batchnorm_names
from trainer.options import FitOptions
from trainer.speed.layout import laid_out, to_device
from trainer.submodel import SubModel, TrainerError, format_value
from trainer.task import Outputs, Task, own, where
from trainer.tasks import Classification
from trainer.updates import RULES


def check_fits(nested: NestedModel, train: Examples, validation: Examples | None, options: FitOptions) -> Task:
    """The task that is trained for: the family's, with the label smoothing of the options.

    Raises TrainerError when the data are not what the model takes, the targets not what the task asks for, or the task lacks
    what the update rule needs. Of data in memory all targets are looked at, of others the first two examples': the rest are
    when they are read. Loss and score are computed once, so that a mistake in the user's own code shows now.
    """
    task = _task_of(nested, options)
    if options.micro_batches > 1 and options.teacher_hidden:
        raise TrainerError(
            f"micro_batches = {options.micro_batches}: teacher_hidden = {options.teacher_hidden} is a distance as a share of a "
            "length that is the whole batch's, which a part does not know; allowed is 1, or teacher_hidden 0"
        )
    for name, split in (("training", train), ("validation", validation)):
        if split is None:
            continue
        if len(split) < 2:
            raise TrainerError(f"{name} data: {len(split)} examples; allowed are 2 and more")
        with _told_of(f"{name} data"):
            with own("data"):
                batch = split.batch(torch.arange(2))
            inputs = as_inputs(batch.inputs, nested.input_names)
            _check_shapes(nested, inputs)
        if split is train:
            _refuse_sizes(nested, inputs)
        with _told_of(f"{name} data"):
            outputs = _outputs(nested, inputs)
            with own(f"task {task.kind}: check"):
                task.check(outputs, split.targets if isinstance(split, Samples) else batch.targets)
        if split is train:
            _refuse_state(nested, inputs)
        _try(task, outputs, batch, RULES[options.update].distils)
    return task


def check_inputs(nested: NestedModel, examples: Examples, what: str) -> None:
    """Raises TrainerError, which begins with `what`, where the first two examples are not what the model takes."""
    with _told_of(what):
        with own("data"):
            batch = examples.batch(torch.arange(min(2, len(examples))))
        _check_shapes(nested, as_inputs(batch.inputs, nested.input_names))


@contextmanager
def _told_of(what: str) -> Iterator[None]:
    try:
        yield
    except TrainerError as error:
        raise TrainerError(f"{what}: {str(error).removeprefix('data: ')}") from error.__cause__


@torch.no_grad()
def _outputs(nested: NestedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The smallest sub-model's for these examples."""
    with _evaluating(nested), own("the model does not take them"):
        return nested.outputs(_placed(nested, inputs), nested.family.smallest)


def _placed(nested: NestedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return laid_out(inputs, next(nested.full.parameters()).device, False)


@contextmanager
def _evaluating(nested: NestedModel) -> Iterator[None]:
    training = nested.training
    nested.eval()
    try:
        yield
    finally:
        nested.train(training)


@torch.no_grad()
def _refuse_sizes(nested: NestedModel, inputs: Mapping[str, Tensor]) -> None:
    """Raises TrainerError naming the axes along which the network is built smaller and does not run, where the full one does.

    Code that takes one size for another (the hidden one for all heads together) runs where both are small or both are full.
    """
    axes, largest = nested.family.axes, nested.family.largest
    given = _placed(nested, inputs)
    failed: dict[str, str] = {}
    with _evaluating(nested):
        for axis, values in axes.items():
            sub = SubModel(**{**largest.axes, axis: values[0]})
            if len(values) > 1 and (wrong := _wrong(nested, given, sub)) and not _wrong(nested, given, largest):
                failed[axis] = f"{sub.id}: {wrong}"
    if failed:
        grid = " ".join(f"--grid {axis}={format_value(axes[axis][-1])}" for axis in failed)
        raise TrainerError(
            f"{type(nested.family).__name__}: does not run with {' or '.join(failed)} alone smaller than in the full model: "
            f"{next(iter(failed.values()))}; leave {'it' if len(failed) == 1 else 'them'} at full size: {grid}"
        )


def _wrong(nested: NestedModel, inputs: Mapping[str, Tensor], sub: SubModel) -> str:
    """What its forward pass raises; empty: nothing."""
    try:
        nested.outputs(inputs, sub)
    except TrainerError:
        raise
    except Exception as error:  # of the family's own code
        return where(error)
    return ""


@torch.no_grad()
def _refuse_state(nested: NestedModel, inputs: Mapping[str, Tensor]) -> None:
    """Raises TrainerError where a step changes buffers that answers depend on, besides BatchNorm's (`trainer.layers`)."""
    with torch.random.fork_rng(devices=[]):
        module = nested.extract(nested.family.smallest).cpu().eval()
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        first = nested.applied(module, inputs)
        try:
            nested.applied(module.train(), inputs)
        except Exception:  # the training will say so itself
            return
        changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
        of_batchnorm = tuple(f"{name}." if name else "" for name in batchnorm_names(module))
        for name, buffer in module.named_buffers():
            if name.startswith(of_batchnorm):
                buffer.copy_(before[name])
        learnt = [name for name in changed if not name.startswith(of_batchnorm)]
        second = nested.applied(module.eval(), inputs)
    if learnt and not all(torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-7, equal_nan=True) for name in first):
        raise TrainerError(
            f"{type(nested.family).__name__}: a step of training changes buffer {learnt[0]!r}, which answers depend on: it "
            "would be one sub-model's, and lost when the run is reopened; allowed are parameters and BatchNorm's statistics"
        )


def _check_shapes(nested: NestedModel, inputs: Mapping[str, Tensor]) -> None:
    with own(f"{type(nested.family).__name__}.example_inputs"):
        examples = nested.family.example_inputs(2)
    for name, example in examples.items():
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


def _try(task: Task, outputs: Outputs, batch: Batch, distils: bool) -> None:
    """What the task's own code makes of two examples."""
    device = next(iter(outputs.values())).device
    with own(f"task {task.kind}: loss"):
        loss = task.loss(outputs, each(batch.targets, lambda t: to_device(t, device)))
        if not isinstance(loss, Tensor) or loss.ndim:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise TrainerError(f"task {task.kind}: loss: is {given}; allowed is a scalar tensor")
    if distils:
        with own(f"task {task.kind}: distil"):
            task.distil(outputs, outputs)
    with own(f"task {task.kind}: scorer"):
        scorer = task.scorer()
        add(task, scorer, outputs, as_arrays(batch.targets))
        try:
            score = scorer.value()
        except TrainerError:  # of two examples perhaps nothing counts
            return
    check_score(task, score)


def _task_of(nested: NestedModel, options: FitOptions) -> Task:
    task = nested.family.task
    if not options.label_smoothing:
        return task
    if not isinstance(task, Classification):
        raise TrainerError(f"label_smoothing = {options.label_smoothing}: allowed for classification; the task is {task.kind}")
    return replace(task, label_smoothing=options.label_smoothing)
