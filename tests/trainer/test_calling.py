"""Inputs and outputs by name: how a network may take the ones and give the others, and what is said where it does not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from tests.helpers.runs import equal, weights
from trainer import Family, NestedModel, Samples, SubModel, TrainerError, calibrate, fit
from trainer.evaluate import scores_of
from trainer.tasks import Regression


@dataclass
class Plain:
    size: Tensor
    place: Tensor
    attention: None = None


class Numbered(NamedTuple):
    size: Tensor
    place: Tensor
    spare: int = 0


@dataclass
class HuggingFaces(ModelOutput):
    loss: Tensor | None = None
    size: Tensor | None = None
    place: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


Given = Callable[[Tensor, Tensor], Any]
WAYS: dict[str, Given] = {  # of (place, size); the task's order is place, size
    "tuple": lambda place, size: (place, size),
    "list": lambda place, size: [place, size],
    "dict": lambda place, size: {"size": size, "place": place, "more": (place, size)},
    "ordered": lambda place, size: OrderedDict(size=size, place=place),
    "dataclass": lambda place, size: Plain(size, place),
    "named tuple": lambda place, size: Numbered(size, place),
    "ModelOutput": lambda place, size: HuggingFaces(size=size, place=place, hidden_states=(place, size)),
}


class Two(Family):
    """Two inputs, two outputs; axis: width. `image` must come first for networks that are called in order."""

    task = Regression(names=("place", "size"))

    def __init__(self, give: Given, network: type[nn.Module] | None = None) -> None:
        self.give, self.network, self.axes = give, network or ByName, {"width": (3, 6)}

    def build(self, sub: SubModel) -> nn.Module:
        return self.network(int(sub["width"]), self.give)  # type: ignore[arg-type, call-arg]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"image": torch.rand(batch_size, 1, 4, 4), "speed": torch.rand(batch_size, 2)}


class Parts(nn.Module):
    def __init__(self, width: int, give: Given) -> None:
        super().__init__()
        self.give, self.seen, self.moved = give, nn.Conv2d(1, width, 3), nn.Linear(2, width)
        self.norm, self.place, self.size = nn.BatchNorm1d(width), nn.Linear(width, 2), nn.Linear(width, 1)

    def both(self, image: Tensor, speed: Tensor) -> Any:
        hidden = self.norm(self.seen(image).mean((2, 3)) + self.moved(speed)).relu()
        return self.give(self.place(hidden), self.size(hidden))


class ByName(Parts):
    """The order of `forward` is not the inputs'."""

    def forward(self, speed: Tensor, image: Tensor | None = None, scale: float = 1.0) -> Any:
        assert image is not None
        return self.both(image * scale, speed)


class KeywordOnly(Parts):
    def forward(self, *, speed: Tensor, image: Tensor) -> Any:
        return self.both(image, speed)


class InOrder(Parts):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.both(x, y)


class PositionsOnly(Parts):
    def forward(self, image: Tensor, speed: Tensor, /) -> Any:
        return self.both(image, speed)


class AnyNames(Parts):
    def forward(self, **inputs: Tensor) -> Any:
        return self.both(**inputs)


class AnyPositions(Parts):
    def forward(self, *inputs: Tensor, **others: Any) -> Any:
        return self.both(*inputs)


def examples(count: int = 24) -> Samples:
    torch.manual_seed(1)
    image, speed = torch.rand(count, 1, 4, 4), torch.rand(count, 2)
    return Samples({"speed": speed, "image": image}, {"size": image.mean((2, 3)), "place": speed * 2})


def nested_of(family: Family) -> NestedModel:
    torch.manual_seed(0)
    return NestedModel(family)


@pytest.mark.parametrize("way", WAYS)
def test_two_outputs_in_every_way_are_the_same_training(way: str) -> None:
    data = examples()
    trained = {}
    for name in ("tuple", way):
        nested = nested_of(Two(WAYS[name]))
        result = fit(nested, data, data, epochs=2, batch_size=8, show_progress=False)
        trained[name] = (weights(nested), result.loss, result.validation, scores_of(nested, nested.submodels, data))
    assert equal(trained[way][0], trained["tuple"][0])
    assert trained[way][1:] == trained["tuple"][1:]
    found = nested.eval().outputs(dict(data.inputs), nested.family.smallest)
    assert {name: tuple(o.shape) for name, o in found.items()} == {"place": (24, 2), "size": (24, 1)}
    assert list(found) == ["place", "size"]


@pytest.mark.parametrize("network", [KeywordOnly, InOrder, PositionsOnly, AnyNames, AnyPositions])
def test_a_network_gets_its_inputs_by_name_or_in_order(network: type[nn.Module]) -> None:
    data, wanted = dict(examples().inputs), nested_of(Two(WAYS["tuple"]))
    nested = nested_of(Two(WAYS["tuple"], network))
    for model in (nested, wanted):
        calibrate(model, [data])
        model.eval()
    for sub in nested.submodels:
        for name, output in nested.outputs(data, sub).items():
            assert torch.equal(output, wanted.outputs(data, sub)[name])
        plain = nested.applied(nested.extract(sub), data)
        assert all(torch.equal(plain[name], wanted.outputs(data, sub)[name]) for name in plain)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda place, size: place, "outputs: the network returns one tensor; the task has 2: place, size"),
        (lambda place, size: (place,), "outputs: the network returns a tuple of 1; allowed are place, size: a tensor each"),
        (lambda place, size: (place, size, size), "outputs: the network returns a tuple of 3; allowed are place, size"),
        (lambda place, size: {"place": place}, "outputs: the network returns 'place'; the task has 'size' too"),
        (lambda place, size: {}, "outputs: the network returns nothing; the task has 'place' too"),
        (lambda place, size: {"place": place, "size": [size]}, "output 'size': is a list; allowed is a tensor"),
        (lambda place, size: HuggingFaces(place=place), "outputs: the network returns 'place'; the task has 'size' too"),
        (lambda place, size: None, "outputs: the network returns a NoneType; allowed are place, size: a tensor each"),
    ],
)
def test_outputs_that_are_not_the_tasks_are_named_before_training(give: Given, message: str) -> None:
    nested, data = nested_of(Two(give)), examples()
    before = weights(nested)
    with pytest.raises(TrainerError, match=message):
        fit(nested, data, epochs=1, batch_size=8, show_progress=False)
    assert equal(before, weights(nested))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: {"image": inputs["image"]}, "inputs: 'image' given; the model takes 'image', 'speed'"),
        (lambda inputs: {**inputs, "time": inputs["speed"]}, "inputs: 'speed', 'image', 'time' given; the model takes"),
        (lambda inputs: inputs["image"], "inputs: 'input' given; the model takes 'image', 'speed'"),
        (lambda inputs: {**inputs, "speed": inputs["image"]}, r"input 'speed' has examples of shape \(1, 4, 4\); .* \(2,\)"),
    ],
)
def test_inputs_that_are_not_the_models_are_named(change: Callable[[Mapping[str, Tensor]], Any], message: str) -> None:
    nested, data = nested_of(Two(WAYS["dict"])), examples()
    with pytest.raises(TrainerError, match=f"training data: {message}"):
        fit(nested, Samples(change(data.inputs), data.targets), batch_size=8, show_progress=False)


def test_one_input_needs_no_name_and_old_tuples_are_told_what_is_taken() -> None:
    nested = NestedModel(Two(WAYS["dict"]))
    with pytest.raises(TrainerError, match="inputs: a tuple; allowed are one tensor, or tensors by name"):
        calibrate(nested, [tuple(examples().inputs.values())])  # type: ignore[list-item]
    with pytest.raises(TrainerError, match="inputs: a tuple; allowed are one tensor, or tensors by name"):
        Samples((torch.rand(4, 3),), torch.arange(4))  # type: ignore[arg-type]
