"""A family again from what a run says of it, and whether that is the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.family import Family, find_family
from trainer.nested import NestedModel
from trainer.speed.layout import laid_out
from trainer.submodel import TrainerError
from trainer.task import find_task, own


def family_of(record: Mapping[str, Any]) -> Family:
    """The family that a run was made with, its grid included."""
    try:
        name, config = record["family"], record["config"]
        with own("run.json: the family cannot be built again from it"):
            family = find_family(name)(**config)
        grid = {axis: [tuple(v) if isinstance(v, list) else v for v in values] for axis, values in record["grid"].items()}
        described = record.get("task", {"name": "classification", "config": {}})  # runs of earlier versions had no other
        task = find_task(described["name"]).configured(described["config"])
    except KeyError as error:
        raise TrainerError(f"run.json: {error} is missing") from None
    return family.with_grid(grid).with_task(task)


def check_rebuilds(nested: NestedModel, record: Mapping[str, Any]) -> None:
    """Raises TrainerError where the family's `config()` does not build it again: an export could not reopen the run.

    Parameters' shapes, buffers and, with the same parameters, the outputs must be those of the network to train.
    """
    name = type(nested.family).__name__
    failed = f"{name}.config() does not build the family again"
    built = f"{name}.config() = {record['config']} builds another network"
    remedy = "config() must return every argument that changes the network"
    try:
        again = family_of(record)
    except TrainerError as error:
        raise TrainerError(f"{failed}: {error}") from error.__cause__
    with own(failed):
        full = again.build(again.largest)
    parameters, wanted = dict(full.named_parameters()), dict(nested.full.named_parameters())
    for parameter in {**wanted, **parameters}:
        here, there = (str(tuple(p[parameter].shape)) if parameter in p else "none" for p in (wanted, parameters))
        if here != there:
            raise TrainerError(f"{built}: parameter {parameter!r} is {there}, in the one to train {here}; {remedy}")
    buffers = dict(full.named_buffers())
    for buffer, value in nested.full.named_buffers():
        if buffer not in buffers or not torch.equal(value.cpu(), buffers[buffer]):
            raise TrainerError(f"{built}: buffer {buffer!r} has other values (a random one must follow from a seed); {remedy}")
    with torch.no_grad():
        for parameter, tensor in parameters.items():
            tensor.copy_(wanted[parameter])
    answers, others = _answers(nested, nested.full), _answers(nested, full)
    for output, answer in answers.items():
        other = others[output]
        if answer.shape != other.shape or not torch.allclose(answer, other, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise TrainerError(f"{built}: with the same parameters its output {output!r} is another; {remedy}")


@torch.no_grad()
def _answers(nested: NestedModel, module: nn.Module) -> dict[str, Tensor]:
    """The module's outputs for the family's example inputs; what it draws at random is the same every time."""
    device, training = next(module.parameters()).device, module.training
    with torch.random.fork_rng(devices=[]), own(f"{type(nested.family).__name__}: the network's forward pass"):
        torch.default_generator.manual_seed(0)
        inputs = laid_out(nested.family.example_inputs(2), device, False)
        torch.default_generator.manual_seed(0)
        found = nested.applied(module.eval(), inputs)
    module.train(training)
    return {name: output.float().cpu() for name, output in found.items()}
